"""An API server of synthetic objects, in a process of its own: lists by pages, watches, streaming lists.

    python -m tests.bench.cluster_api FD NODES PODS SERVICES POLICIES      FD: a listening socket

Everything is written out beforehand, so that it costs little beside the agent that reads it. Lines of
standard input say what shall happen, lines of standard output what has:

    churn RATE SECONDS WAY     -> {"sent": [...]}     changes a second, evenly; WAY is one of CHURN
    served                     -> {"bytes": ..., "by_kind": {...}, "requests": ...}
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import parse_qs

from podlane.watch.reflector import PATHS
from tests.bench import cluster_objects
from tests.bench.cluster_objects import Size

LISTED = "1000000"  # resourceVersion of the lists
_BOOKMARK_S = 60.0
_AT_ONCE = 200  # events of a streaming list written together

CHURN = ("endpoints", "pods", "heartbeats", "nodes")


class Api:
    def __init__(self, listener: socket.socket, size: Size) -> None:
        self._listener, self.size = listener, size
        self._items = {
            kind: [cluster_objects.item(kind, number, size) for number in range(size.count(kind))]
            for kind in PATHS
        }
        self._watches: dict[str, list[socket.socket]] = {kind: [] for kind in PATHS}
        self._lock = threading.Lock()
        self.version = int(LISTED)
        self.served: Counter[str] = Counter()
        self.requests = 0

    def serve(self) -> None:
        threading.Thread(target=self._bookmarks, daemon=True).start()
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def _connection(self, connection: socket.socket) -> None:
        with suppress(OSError):
            rest = b""
            while True:
                while b"\r\n\r\n" not in rest:
                    part = connection.recv(65536)
                    if not part:
                        return
                    rest += part
                head, _, rest = rest.partition(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
                while len(rest) < int(length or 0):
                    rest += connection.recv(65536)
                rest = rest[int(length or 0) :]
                self.requests += 1
                if self._answer(connection, head):
                    return

    def _answer(self, connection: socket.socket, head: bytes) -> bool:
        """True when the connection is a watch's from now on."""
        method, target = head.split(b" ")[:2]
        path, _, query = target.decode().partition("?")
        kind = next((k for k, p in PATHS.items() if p == path), "")
        asked = {name: values[0] for name, values in parse_qs(query).items()}
        if method != b"GET" or not kind:
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            return False
        if "watch" in asked:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            if asked.get("sendInitialEvents") == "true":
                for chunk in self._initial(kind):
                    self._send(connection, kind, chunk)
            with self._lock:
                self._watches[kind].append(connection)
            return True
        items = self._items[kind]
        start = int(asked.get("continue", "0"))
        end = min(len(items), start + int(asked.get("limit", len(items)) or len(items)))
        more = f'"continue":"{end}","remainingItemCount":{len(items) - end},' if end < len(items) else ""
        metadata = f'{{{more}"resourceVersion":"{LISTED}"}}'
        first = f'{{"kind":"{kind}List","apiVersion":"v1","metadata":{metadata},"items":['
        body = b"%s%s]}" % (first.encode(), b",".join(items[start:end]))
        self.served[kind] += len(body)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        connection.sendall(body)
        return False

    def _initial(self, kind: str) -> Iterator[bytes]:
        items = self._items[kind]
        for start in range(0, len(items), _AT_ONCE):
            yield b"".join(
                b'{"type":"ADDED","object":%s}\n' % each for each in items[start : start + _AT_ONCE]
            )
        metadata = {"resourceVersion": LISTED, "annotations": {"k8s.io/initial-events-end": "true"}}
        yield (
            json.dumps({"type": "BOOKMARK", "object": {"kind": kind, "metadata": metadata}}).encode() + b"\n"
        )

    def _send(self, connection: socket.socket, kind: str, data: bytes) -> None:
        self.served[kind] += len(data)
        connection.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def tell(self, kind: str, line: bytes) -> None:
        with self._lock:
            for each in list(self._watches[kind]):
                try:
                    self._send(each, kind, line)
                except OSError:
                    self._watches[kind].remove(each)

    def _bookmarks(self) -> None:
        while True:
            time.sleep(_BOOKMARK_S)
            for kind in PATHS:
                metadata = {"resourceVersion": str(self.version)}
                self.tell(
                    kind, json.dumps({"type": "BOOKMARK", "object": {"metadata": metadata}}).encode() + b"\n"
                )

    # --- what shall happen ---

    def churn(self, rate: float, seconds: float, way: str, first: int) -> list[float]:
        """When each change was sent, by the clock that all processes share."""
        sent: list[float] = []
        began_s = time.monotonic()
        for turn in range(round(rate * seconds)):
            pause_s = began_s + turn / rate - time.monotonic()
            if pause_s > 0:
                time.sleep(pause_s)
            self.version += 1
            lines = list(self._changes(first + turn, way))
            sent.append(time.monotonic())
            for what, kind, value in lines:
                self.tell(kind, b'{"type":"%s","object":%s}\n' % (what, value))
        return sent

    def _changes(self, turn: int, way: str) -> Iterator[tuple[bytes, str, bytes]]:
        """What is told, of which kind, and the object."""
        size, beat = self.size, f"2026-02-01T{turn // 3600 % 24:02}:{turn // 60 % 60:02}:{turn % 60:02}Z"
        if way == "heartbeats":
            yield b"MODIFIED", "Node", cluster_objects.node(1 + turn % (size.nodes - 1), self.version, beat)
            return
        if way == "nodes":  # one that was not there comes, and goes with the next change
            yield (
                (b"DELETED" if turn % 2 else b"ADDED"),
                "Node",
                cluster_objects.node(size.nodes, self.version),
            )
            return
        number = turn * 7919 % size.services
        if way == "pods":  # an endpoint changes because a pod does, which its kubelet tells in four steps
            which = number // 2 % size.apps * cluster_objects.PODS_OF_APP
            for step in range(4):
                yield (
                    b"MODIFIED",
                    "Pod",
                    cluster_objects.pod(which, size, self.version, f"{beat[:-1]}.{step}Z"),
                )
        yield (
            b"MODIFIED",
            "EndpointSlice",
            cluster_objects.piece(number, size, self.version, new_address(turn)),
        )


def new_address(turn: int) -> str:
    """What the endpoint that changes in that turn becomes: an address of its own."""
    return f"10.{200 + (turn >> 16)}.{turn >> 8 & 255}.{turn & 255}"


def main() -> None:
    fd, *numbers = map(int, sys.argv[1:])
    api = Api(socket.socket(fileno=fd), Size(*numbers))
    threading.Thread(target=api.serve, daemon=True).start()
    print("{}", flush=True)
    turn = 0
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "churn":
            sent = api.churn(float(rest[0]), float(rest[1]), rest[2], turn)
            answer: object = {"sent": sent, "first": turn, "version": str(api.version)}
            turn += len(sent)
        else:
            answer = {"bytes": sum(api.served.values()), "by_kind": api.served, "requests": api.requests}
            api.served = Counter()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
