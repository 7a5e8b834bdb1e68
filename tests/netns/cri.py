"""A client of the Container Runtime Interface (CRI v1): gRPC over a unix socket, as much as tests need.

Messages are protocol buffers by hand: `message` writes fields by number, `fields` reads them. The numbers
are those of k8s.io/cri-api, runtime/v1/api.proto.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import h2.connection
import h2.events

from podlane.model.addresses import Address

Value: TypeAlias = "int | str | bytes | Mapping[str, str] | Sequence[bytes]"
PROTOCOLS = {"tcp": 0, "udp": 1, "sctp": 2}


class RpcError(Exception):
    """The runtime's refusal: the status and message of gRPC."""


def _varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


def message(found: Mapping[int, Value]) -> bytes:
    """A value is a number, a string, a message, a map of strings, or a list of messages."""
    return b"".join(_field(number, value) for number, value in found.items())


def _field(number: int, value: Value) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return _varint(number << 3 | 2) + _varint(len(data)) + data
    entries = [message({1: k, 2: v}) for k, v in value.items()] if isinstance(value, Mapping) else value
    return b"".join(_field(number, entry) for entry in entries)


def fields(data: bytes) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(data):
        key = varint()
        if key & 7 == 2:
            size = varint()
            value: Any = data[place : place + size]
            place += size
        else:
            assert key & 7 == 0, f"wire type {key & 7}"
            value = varint()
        found.setdefault(key >> 3, []).append(value)
    return found


def _text(found: dict[int, list[Any]], number: int) -> str:
    return found.get(number, [b""])[0].decode()


class PortMapping(NamedTuple):
    host_port: int
    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""


class Sandbox(NamedTuple):
    """What PodSandboxStatus says. addresses: of the pod, primary first."""

    ready: bool
    addresses: tuple[Address, ...]


class Runtime:
    """One call a connection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(
        self,
        name: str,
        ports: Sequence[PortMapping] = (),
        annotations: Mapping[str, str] | None = None,
        cgroup_parent: str = "",
        attempt: int = 0,
    ) -> str:
        """RunPodSandbox. Returns the sandbox's id."""
        metadata = message({1: name, 2: f"uid-{name}", 3: "default", 4: attempt})
        mappings = [
            message({1: PROTOCOLS[p.protocol], 2: p.container_port, 3: p.host_port, 4: p.host_ip})
            for p in ports
        ]
        config = message(
            {
                1: metadata,
                2: name,
                5: mappings,
                6: {"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default"},
                7: annotations or {},
                8: message({1: cgroup_parent}),
            }
        )
        return _text(self._call("RunPodSandbox", {1: config}), 1)

    def stop(self, sandbox: str) -> None:
        self._call("StopPodSandbox", {1: sandbox})

    def remove(self, sandbox: str) -> None:
        self._call("RemovePodSandbox", {1: sandbox})

    def sandbox(self, sandbox: str) -> Sandbox:
        status = fields(self._call("PodSandboxStatus", {1: sandbox})[1][0])
        network = fields(status.get(5, [b""])[0])
        texts = [_text(network, 1), *(_text(fields(entry), 1) for entry in network.get(2, ()))]
        return Sandbox(status.get(3, [0])[0] == 0, tuple(ip_address(text) for text in texts if text))

    def sandboxes(self) -> list[str]:
        return [_text(fields(each), 1) for each in self._call("ListPodSandbox", {}).get(1, ())]

    def conditions(self) -> dict[str, tuple[bool, str]]:
        """Status: whether the runtime and its network are ready, and why not."""
        found = fields(self._call("Status", {})[1][0])
        entries = [fields(each) for each in found.get(1, ())]
        return {_text(e, 1): (bool(e.get(2, [0])[0]), _text(e, 4)) for e in entries}

    def _call(self, method: str, request: Mapping[int, Value]) -> dict[int, list[Any]]:
        body = message(request)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.path))
            http = h2.connection.H2Connection()
            http.initiate_connection()
            headers = {
                ":method": "POST",
                ":scheme": "http",
                ":path": f"/runtime.v1.RuntimeService/{method}",
                ":authority": "localhost",
                "content-type": "application/grpc",
                "te": "trailers",
            }
            http.send_headers(1, list(headers.items()))
            http.send_data(1, struct.pack("!BI", 0, len(body)) + body, end_stream=True)
            connection.sendall(http.data_to_send())
            data, trailers = b"", dict[str, str]()
            for event in _events(connection, http):
                if isinstance(event, h2.events.DataReceived):
                    data += event.data
                elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    trailers |= {_str(key): _str(value) for key, value in event.headers}
        if trailers.get("grpc-status") != "0":
            raise RpcError(f"{trailers.get('grpc-status')}: {trailers.get('grpc-message')}")
        return fields(data[5:])


def _events(connection: socket.socket, http: h2.connection.H2Connection) -> Iterator[h2.events.Event]:
    """Until the answer has ended."""
    while received := connection.recv(65536):
        for event in http.receive_data(received):
            if isinstance(event, h2.events.DataReceived):
                http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            yield event
            if isinstance(event, h2.events.StreamEnded):
                return
        connection.sendall(http.data_to_send())
    raise RpcError("the runtime closed the connection before it answered")


def _str(text: bytes | str) -> str:
    return text.decode() if isinstance(text, bytes) else text
