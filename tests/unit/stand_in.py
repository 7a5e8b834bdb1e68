"""A stand-in for a kube-apiserver that can be told to misbehave: real sockets, real TLS, documented answers.

Lists by pages with continue tokens, watches with bookmarks, streaming lists, 410 after a compaction, Status
objects. `fault` may answer any request in its own way: with an `Answer`, or with raw bytes after which the
connection is closed. It runs on the loop of its own thread, so it answers while a test's loop does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

Obj = dict[str, Any]
NODES = "/api/v1/nodes"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
PODS = "/api/v1/pods"


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    peer: str
    """Common name of the client's certificate, "" without one."""

    @property
    def streaming(self) -> bool:
        return "sendInitialEvents" in self.query

    @property
    def watching(self) -> bool:
        return "watch" in self.query and not self.streaming


class Answer(NamedTuple):
    code: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


Fault = Callable[[Asked], "Answer | bytes | None"]


def status(code: int, reason: str, message: str, **details: Any) -> Answer:
    """As a kube-apiserver refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return Answer(code, json.dumps(body | {"reason": reason, "details": details, "code": code}).encode())


class StandIn:
    """port: of loopback, the same after `stop` and `start`. asked: every request so far."""

    def __init__(self, tls: ssl.SSLContext | None = None, *, streams: bool = True) -> None:
        self.streams, self._tls = streams, tls
        self.asked: list[Asked] = []
        self.fault: Fault = lambda asked: None
        self.version, self._compacted = 100, 0
        self._objects: dict[str, dict[str, Obj]] = {}
        self._events: list[tuple[int, str, str, Obj]] = []
        self._news = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0

    def __enter__(self) -> StandIn:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        async def work() -> None:
            serving = asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
            self._server = await serving
            self.port = self._server.sockets[0].getsockname()[1]

        self._do(work)

    def stop(self) -> None:
        """Connections are refused, those there are break."""

        async def work() -> None:
            if self._server is not None:
                self._server.close()
                self._server = None
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._do(work)

    # --- objects ---

    def put(self, path: str, name: str, **body: Any) -> None:
        async def work() -> None:
            objects = self._objects.setdefault(path, {})
            self.version += 1
            meta = {"name": name, "uid": f"uid-{name}", **body.pop("metadata", {})}
            obj = {**body, "metadata": {**meta, "resourceVersion": str(self.version)}}
            kind = "MODIFIED" if name in objects else "ADDED"
            objects[name] = obj
            self._told(kind, path, obj)

        self._do(work)

    def delete(self, path: str, name: str) -> None:
        async def work() -> None:
            self.version += 1
            obj = self._objects[path].pop(name)
            obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
            self._told("DELETED", path, obj)

        self._do(work)

    def compact(self) -> None:
        """Nothing before now is known any more."""
        self._compacted = self.version
        self._events.clear()

    def restore(self, version: int, path: str, *names: str) -> None:
        """The database is put back to an older state."""
        self.version, self._compacted = version, 0
        self._events.clear()
        self._objects = {path: {}}
        for name in names:
            meta = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version - 1)}
            self._objects[path][name] = {"metadata": meta}

    def count(self, which: Callable[[Asked], bool]) -> int:
        return sum(map(which, list(self.asked)))

    def _told(self, kind: str, path: str, obj: Obj) -> None:
        self._events.append((self.version, kind, path, obj))
        self._news.set()
        self._news = asyncio.Event()

    def _do(self, work: Callable[[], Any]) -> None:
        asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)

    # --- HTTP ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            asked = await self._read(reader, writer)
            self.asked.append(asked)
            answer = self.fault(asked)
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
                if not answer:
                    await asyncio.Event().wait()  # a black hole
            elif answer is not None:
                _write(writer, answer)
            elif "watch" in asked.query:
                await self._watch(asked, writer)
            else:
                _write(writer, self._list(asked))
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (each.partition(":") for each in lines if each)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        parts = urlsplit(target)
        certificate = writer.get_extra_info("peercert") or {}
        names = dict(pair for part in certificate.get("subject", ()) for pair in part)
        return Asked(
            method, parts.path, dict(parse_qsl(parts.query)), headers, body, names.get("commonName", "")
        )

    def _list(self, asked: Asked) -> Answer:
        start, _, version = asked.query.get("continue", "0").partition("@")
        if version and int(version) < self._compacted:
            return status(
                410, "Expired", "The provided continue parameter is too old to display a consistent list"
            )
        items = sorted(self._objects.get(asked.path, {}).values(), key=lambda o: o["metadata"]["name"])
        at, limit = int(start), int(asked.query.get("limit", 0)) or len(items)
        meta = {"resourceVersion": version or str(self.version)}
        if at + limit < len(items):
            meta["continue"] = f"{at + limit}@{meta['resourceVersion']}"
        body = {"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items[at : at + limit]}
        return Answer(200, json.dumps(body).encode())

    async def _watch(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.streaming and not self.streams:
            message = (
                'ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is '
                "forbidden for watch unless the WatchList feature gate is enabled"
            )
            _write(writer, status(422, "Invalid", message))
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        since = int(asked.query.get("resourceVersion", "0"))
        if asked.streaming:
            since = self.version
            for obj in list(self._objects.get(asked.path, {}).values()):
                _event(writer, "ADDED", obj)
            ended = {"k8s.io/initial-events-end": "true"}
            _event(writer, "BOOKMARK", _bookmark(since, ended))
        elif since < self._compacted:
            refused = status(410, "Expired", f"too old resource version: {since} ({self._compacted})")
            _event(writer, "ERROR", json.loads(refused.body))
            writer.write(b"0\r\n\r\n")
            return
        await writer.drain()
        while True:
            news = self._news
            for version, kind, path, obj in list(self._events):
                if path == asked.path and version > since:
                    _event(writer, kind, obj)
                    since = version
            await writer.drain()
            await news.wait()


def _bookmark(version: int, annotations: Obj) -> Obj:
    return {"metadata": {"resourceVersion": str(version), "annotations": annotations}, "spec": None}


def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    lines = [f"HTTP/1.1 {answer.code} X", f"Content-Length: {len(answer.body)}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    # As API priority and fairness says who was served how.
    lines += ["X-Kubernetes-Pf-Flowschema-Uid: a", "X-Kubernetes-Pf-Prioritylevel-Uid: b", "", ""]
    writer.write("\r\n".join(lines).encode() + answer.body)


def _event(writer: asyncio.StreamWriter, kind: str, obj: Obj) -> None:
    line = json.dumps({"type": kind, "object": obj}).encode() + b"\n"
    writer.write(b"%x\r\n%s\r\n" % (len(line), line))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


# --- certificates ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    """PEM."""

    certificate: bytes
    key: bytes

    def write(self, where: Path, name: str) -> tuple[Path, Path]:
        paths = where / f"{name}.crt", where / f"{name}.key"
        for path, content in zip(paths, self, strict=True):
            path.write_bytes(content)
        return paths


class Authority:
    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key.public_key())
        basic = x509.BasicConstraints(ca=True, path_length=None)
        self._certificate = builder.add_extension(basic, critical=True).sign(self._key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, *, host: str = "127.0.0.1", days: tuple[int, int] = (-1, 1)) -> Pair:
        """days: from now, when it begins and ends to hold."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._name, key.public_key(), days)
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
        return Pair(certificate, key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, none))

    def server(self, where: Path, pair: Pair | None = None, *, clients: bool = False) -> ssl.SSLContext:
        """clients: their certificates are asked for, and judged."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(pair or self.issue("kube-apiserver")).write(where, "server"))
        if clients:
            context.load_verify_locations(cadata=self.pem.decode())
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: tuple[int, int] = (-1, 1)
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    begins, ends = (now + datetime.timedelta(days=each) for each in days)
    return builder.not_valid_before(begins).not_valid_after(ends)


@contextlib.contextmanager
def serving(*servers: StandIn) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for each in servers:
            stack.enter_context(each)
        yield
