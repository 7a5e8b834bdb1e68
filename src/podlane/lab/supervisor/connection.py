"""One client of the supervisor: frames and descriptors in, answers out, never waiting for it."""

from __future__ import annotations

import array
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from podlane.lab.supervisor import protocol
from podlane.lab.supervisor.loop import Loop

_ANCILLARY_BYTES = socket.CMSG_SPACE(protocol.MAX_DESCRIPTORS * array.array("i").itemsize)
_DECODER = msgspec.json.Decoder(protocol.Call)


class Connection:
    """handle(connection, call, descriptors) is called for each request; it owns the descriptors then."""

    def __init__(
        self,
        loop: Loop,
        peer: socket.socket,
        handle: Callable[[Connection, protocol.Call, list[int]], None],
        closed: Callable[[Connection], None],
    ) -> None:
        self._loop, self._peer, self._handle, self._closed = loop, peer, handle, closed
        self._incoming = bytearray()
        self._descriptors: deque[int] = deque()
        self._outgoing = bytearray()
        self._fd = peer.fileno()
        self.open = True
        peer.setblocking(False)
        loop.add_reader(self._fd, self._readable)

    def answer(self, number: int, result: Any = None) -> None:
        self._send(protocol.Answer(number, msgspec.Raw(msgspec.json.encode(result))))

    def refuse(self, number: int, error: str, reason: str = "") -> None:
        self._send(protocol.Answer(number, error=error, reason=reason))

    def _send(self, answer: protocol.Answer) -> None:
        if not self.open:
            return
        blocked = bool(self._outgoing)
        self._outgoing += protocol.frame(answer)
        if not blocked:
            self._flush()

    def _flush(self) -> None:
        """What the peer does not take now is sent when it reads again; until then nothing is read from it."""
        waiting = False
        try:
            while self._outgoing:
                del self._outgoing[: self._peer.send(self._outgoing)]
        except BlockingIOError:
            waiting = True
        except OSError:
            self.close()
            return
        self._loop.remove(self._fd)
        if waiting:
            self._loop.add_writer(self._fd, self._flush)
        else:
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._peer.recvmsg(
                1 << 16, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._descriptors.extend(fds)
        if not data:
            self.close()
            return
        self._incoming += data
        try:
            for body in protocol.frames(self._incoming):
                self._request(body)
        except ValueError:
            self.close()

    def _request(self, body: bytes) -> None:
        try:
            call = _DECODER.decode(body)
        except msgspec.DecodeError as error:
            self._send(protocol.Answer(_id_of(body), error=f"a request that makes no sense: {error}"))
            return
        count = min(call.descriptors, len(self._descriptors))
        descriptors = [self._descriptors.popleft() for _ in range(count)]
        self._handle(self, call, descriptors)

    def close(self) -> None:
        if not self.open:
            return
        self.open = False
        self._loop.remove(self._fd)
        self._peer.close()
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self._closed(self)


def _id_of(body: bytes) -> int:
    """Of a request that cannot be decoded whole."""

    class Head(msgspec.Struct):
        id: int = 0

    try:
        return msgspec.json.decode(body, type=Head).id
    except msgspec.DecodeError:
        return 0
