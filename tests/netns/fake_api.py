"""The least of a Kubernetes API an agent can live on: lists, watches, patches of nodes, events."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from socket import socket
from typing import Any
from urllib.parse import parse_qs

from podlane.watch.reflector import PATHS

Obj = dict[str, Any]


class FakeApi:
    """Serves on sockets handed in, in a thread of its own. Objects by kind and name.

    events: what was posted, by name.
    """

    def __init__(self, sockets: list[socket]) -> None:
        self._sockets = sockets
        self._objects: dict[str, dict[str, Obj]] = {kind: {} for kind in PATHS}
        self.events: dict[str, Obj] = {}
        self._watchers: set[tuple[str, asyncio.Queue[bytes]]] = set()
        self._version = 100
        self._told: list[tuple[int, str, bytes]] = []  # (version, kind, line)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> FakeApi:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Its connections break, nobody listens any more. Closing twice is fine."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def version(self) -> int:
        """Of the newest change."""
        return self._version

    def annotations(self, kind: str, name: str) -> dict[str, str]:
        return dict(self._objects[kind][name]["metadata"].get("annotations", {}))

    def put(self, kind: str, name: str, **body: Any) -> None:
        self._change(lambda: self._put(kind, name, body))

    def node(self, name: str) -> Obj:
        return self._objects["Node"][name]

    def conditions(self, node: str) -> dict[str, Obj]:
        """Of a Node, by type."""
        return {c["type"]: c for c in self._objects["Node"][node].get("status", {}).get("conditions", ())}

    def delete(self, kind: str, name: str) -> None:
        self._change(lambda: self._delete(kind, name))

    def _change(self, work: Callable[[], None]) -> None:
        async def on_loop() -> None:
            work()

        asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(10)

    def _put(self, kind: str, name: str, body: Obj) -> None:
        self._version += 1
        old = self._objects[kind].get(name)
        uid = old["metadata"]["uid"] if old else f"uid-{self._version}"
        metadata = {"name": name, "uid": uid, **body.pop("metadata", {})}
        metadata["resourceVersion"] = str(self._version)
        self._objects[kind][name] = {"kind": kind, "metadata": metadata, **body}
        self._tell(kind, "MODIFIED" if old else "ADDED", self._objects[kind][name])

    def _delete(self, kind: str, name: str) -> None:
        self._version += 1
        gone = self._objects[kind].pop(name)
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell(kind, "DELETED", gone)

    def _tell(self, kind: str, what: str, obj: Obj) -> None:
        line = json.dumps({"type": what, "object": obj}).encode() + b"\n"
        self._told.append((self._version, kind, line))
        for watched, queue in self._watchers:
            if watched == kind:
                queue.put_nowait(line)

    async def _start(self) -> None:
        self._servers = [await asyncio.start_server(self._serve, sock=each) for each in self._sockets]

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ")[1].decode()
                if head.startswith(b"POST "):
                    await self._post(head, reader, writer)
                    continue
                path, _, query = target.partition("?")
                kind = next((k for k, p in PATHS.items() if p == path), "")
                one = self._one(path)
                if head.startswith(b"PATCH"):
                    patch = json.loads(await reader.readexactly(_length(head)))
                    if path.endswith("/status"):
                        self._set_conditions(path.removesuffix("/status"), patch)
                    else:
                        self._annotate(path, patch)
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                elif one is not None:
                    body = json.dumps(one).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                elif not kind:
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                elif "watch=1" in query:
                    await self._watch(kind, query, writer)
                else:
                    items = list(self._objects[kind].values())
                    answer = {"metadata": {"resourceVersion": str(self._version)}, "items": items}
                    body = json.dumps(answer).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    def _annotate(self, path: str, patch: Obj) -> None:
        collection, _, name = path.rpartition("/")
        kind = next(k for k, p in PATHS.items() if p == collection)
        obj = self._objects[kind][name]
        metadata = dict(obj["metadata"])
        metadata.pop("resourceVersion")
        metadata["annotations"] = metadata.get("annotations", {}) | patch["metadata"]["annotations"]
        self._put(kind, name, {**obj, "metadata": metadata})

    def _one(self, path: str) -> Obj | None:
        collection, _, name = path.rpartition("/")
        return next((self._objects[k].get(name) for k, p in PATHS.items() if p == collection), None)

    def _set_conditions(self, path: str, patch: Obj) -> None:
        """A strategic merge patch of status.conditions."""
        collection, _, name = path.rpartition("/")
        kind = next(k for k, p in PATHS.items() if p == collection)
        obj = self._objects[kind][name]
        metadata = {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}
        status = obj.get("status", {})
        found = {c["type"]: c for c in (*status.get("conditions", ()), *patch["status"]["conditions"])}
        self._put(
            kind,
            name,
            {**obj, "metadata": metadata, "status": {**status, "conditions": list(found.values())}},
        )

    async def _post(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        obj = json.loads(await reader.readexactly(_length(head)))
        there = obj["metadata"]["name"] in self.events
        self.events.setdefault(obj["metadata"]["name"], obj)
        body = b'{"code": 409, "reason": "AlreadyExists"}' if there else b"{}"
        status = b"409 Conflict" if there else b"201 Created"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    async def _watch(self, kind: str, query: str, writer: asyncio.StreamWriter) -> None:
        """What has happened since the version that is asked for, and what happens from now on."""
        since = int(parse_qs(query).get("resourceVersion", ["0"])[0] or 0)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        if "sendInitialEvents=true" in query:
            for obj in self._objects[kind].values():
                queue.put_nowait(json.dumps({"type": "ADDED", "object": obj}).encode() + b"\n")
            since = self._version
            ended = {"resourceVersion": str(since), "annotations": {"k8s.io/initial-events-end": "true"}}
            bookmark = {"type": "BOOKMARK", "object": {"kind": kind, "metadata": ended}}
            queue.put_nowait(json.dumps(bookmark).encode() + b"\n")
        for version, told, line in self._told:
            if told == kind and version > since:
                queue.put_nowait(line)
        me = (kind, queue)
        self._watchers.add(me)
        try:
            while not writer.is_closing():
                line = await queue.get()
                writer.write(b"%x\r\n%s\r\n" % (len(line), line))
        finally:
            self._watchers.discard(me)


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].split()[0])
