"""The built-in responder: what a container runs whose image's program is not on this machine.

One process a container, all of its ports, both address families. Its configuration is a file held open from
before the container's root was entered; SIGHUP makes it read that again, as ports may come and go with
the services that select the pod. What it says is in conversation.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import msgspec
from msgspec import Struct

from podlane.errors import LabError
from podlane.lab.runtime.conversation import Conversation, Identity, answer

IP_PKTINFO = 8
FAMILIES = (socket.AF_INET, socket.AF_INET6)
READ_BYTES = 1 << 16
ACCEPT_AT_ONCE = 64
# After SIGTERM it goes on answering until nobody new has come for so long: those who balance the load learn a
# moment later than the pod that it ends, and a well-behaved server loses no request for that.
QUIET_S, LONGEST_END_S = 0.5, 3.0
DECIDE_AFTER_S = 0.5  # first bytes that could still become HTTP are echoed then
_ANCILLARY_BYTES = socket.CMSG_SPACE(64)


class Port(Struct, frozen=True):
    """protocol: TCP or UDP. required: a port that is taken already is an error of the container."""

    port: int
    protocol: str = "TCP"
    required: bool = True


class Config(Struct, frozen=True):
    identity: Identity
    ports: list[Port] = []


def serve(config_fd: int, ready: Callable[[], None]) -> NoReturn:
    """Answers until SIGTERM, and a little longer. Calls ready once every port listens.

    Raises LabError before that.
    """
    responder = Responder(_say)
    wake_reader, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGHUP, lambda *_: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # As process 1 of its namespace it would not hear them otherwise.
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: None)
    responder.configure(_read(config_fd))
    ready()

    def woken() -> None:
        numbers = os.read(wake_reader, 64)
        if signal.SIGTERM in numbers:
            responder.end()
        if signal.SIGHUP in numbers:
            try:
                responder.configure(_read(config_fd))
            except (LabError, msgspec.DecodeError) as error:
                _say(f"kept the ports there were: {error}")

    responder.watch(wake_reader, woken)
    while not responder.ended:
        responder.step()
    os._exit(0)


def _read(fd: int) -> Config:
    return msgspec.json.decode(os.pread(fd, 1 << 20, 0), type=Config)


def _say(text: str) -> None:
    print(f"podlane responder: {text}", flush=True)


class Responder:
    """Sockets by selectors; `step` waits for the next events and handles them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._selector = selectors.DefaultSelector()
        self._identity = Identity("", "", "")
        self._sockets: dict[tuple[str, int], list[socket.socket]] = {}
        self._undecided: dict[_Connection, float] = {}
        self._last_arrival_s = self._ending_since_s = 0.0

    def end(self) -> None:
        """From now on connections are closed after an answer; `ended` when nobody comes any more."""
        if not self._ending_since_s:
            self._last_arrival_s = self._ending_since_s = time.monotonic()

    @property
    def ending(self) -> bool:
        return self._ending_since_s > 0

    @property
    def ended(self) -> bool:
        now_s = time.monotonic()
        quiet = now_s - self._last_arrival_s >= QUIET_S or now_s - self._ending_since_s >= LONGEST_END_S
        return self.ending and quiet

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def configure(self, config: Config) -> None:
        """Opens and closes ports. Raises LabError for a required port; then nothing has changed."""
        self._identity = config.identity
        wanted = {(p.protocol, p.port): p for p in config.ports if p.protocol in ("TCP", "UDP")}
        opened: dict[tuple[str, int], list[socket.socket]] = {}
        for key, port in wanted.items():
            if key in self._sockets:
                continue
            try:
                opened[key] = _open(port)
            except OSError as error:
                text = f"port {port.port}/{port.protocol}: {error.strerror}"
                if port.required:
                    for sockets in opened.values():
                        _close(sockets)
                    raise LabError(text) from None
                self._say(text)
        for key in self._sockets.keys() - wanted.keys():
            for sock in self._sockets.pop(key):
                self._selector.unregister(sock)
                sock.close()
        for (protocol, number), sockets in opened.items():
            self._sockets[protocol, number] = sockets
            for sock in sockets:
                handler = self._accept if protocol == "TCP" else self._datagram
                self._selector.register(
                    sock, selectors.EVENT_READ, lambda handler=handler, sock=sock: handler(sock)
                )
        if opened:
            self._say("listens on " + ", ".join(f"{p.lower()} {n}" for p, n in sorted(opened)))

    def step(self, timeout_s: float | None = None) -> None:
        if self._undecided or self.ending:
            timeout_s = min(DECIDE_AFTER_S, QUIET_S)
        for key, _ in self._selector.select(timeout_s):
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        if self._undecided:
            now_s = time.monotonic()
            for connection, since_s in list(self._undecided.items()):
                if now_s - since_s >= DECIDE_AFTER_S:
                    del self._undecided[connection]
                    connection.decide()

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                peer, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                self._say(f"accept: {error.strerror}")
                return
            self._last_arrival_s = time.monotonic()
            conversation = Conversation(self._identity, address[0], lambda: self.ending)
            _Connection(self._selector, self._undecided, peer, conversation)

    def _datagram(self, sock: socket.socket) -> None:
        """The answer leaves from the address that was asked: a host may have several."""
        try:
            _, ancillary, _, address = sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES)
        except OSError:  # nothing there after all, or an ICMP error of an earlier answer
            return
        self._last_arrival_s = time.monotonic()
        body = answer(self._identity, address[0])
        with contextlib.suppress(OSError):  # a datagram may be lost
            sock.sendmsg([body], _reply_from(ancillary), 0, address)


class _Connection:
    """One TCP connection. It reads only while nothing waits to be sent."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        undecided: dict[_Connection, float],
        peer: socket.socket,
        conversation: Conversation,
    ) -> None:
        self._selector, self._undecided, self._peer = selector, undecided, peer
        self._conversation = conversation
        self._outgoing = b""
        self._writing = False
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(peer, selectors.EVENT_READ, self._readable)

    def _readable(self) -> None:
        try:
            data = self._peer.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        self._send(self._conversation.receive(data) if data else self._conversation.eof())
        if self._conversation.undecided:
            self._undecided.setdefault(self, time.monotonic())
        else:
            self._undecided.pop(self, None)

    def decide(self) -> None:
        self._send(self._conversation.echo())

    def _send(self, data: bytes) -> None:
        self._outgoing += data
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self._peer.send(self._outgoing) :]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._selector.modify(self._peer, selectors.EVENT_WRITE, lambda: self._send(b""))
            return
        except OSError:
            self._close()
            return
        if self._conversation.finished:
            self._close()
        elif self._writing:
            self._writing = False
            self._selector.modify(self._peer, selectors.EVENT_READ, self._readable)

    def _close(self) -> None:
        self._undecided.pop(self, None)
        if self._peer.fileno() >= 0:
            self._selector.unregister(self._peer)
            self._peer.close()


def _open(port: Port) -> list[socket.socket]:
    """A socket of every family this namespace has. Raises OSError when there is none, or one is taken."""
    opened: list[socket.socket] = []
    kind = socket.SOCK_STREAM if port.protocol == "TCP" else socket.SOCK_DGRAM
    failure: OSError | None = None
    for family in FAMILIES:
        try:
            sock = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:  # a kernel without this family
            failure = error
            continue
        try:
            _bind(sock, family, port)
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRNOTAVAIL:  # the family is switched off here
                failure = error
                continue
            _close(opened)
            raise
        opened.append(sock)
    if not opened:
        raise failure or OSError("no address family")
    return opened


def _bind(sock: socket.socket, family: socket.AddressFamily, port: Port) -> None:
    six = family == socket.AF_INET6
    if six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    if port.protocol == "TCP":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    elif six:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    sock.bind(("::" if six else "0.0.0.0", port.port))
    if port.protocol == "TCP":
        sock.listen(1024)


def _reply_from(ancillary: list[tuple[int, int, bytes]]) -> list[tuple[int, int, bytes]]:
    """Control messages for an answer to a datagram that came with these (ip(7), ipv6(7))."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            # struct in_pktinfo: interface, local address (the source of an answer), destination
            _, local, _ = struct.unpack("i4s4s", data[:12])
            return [(level, kind, struct.pack("i4s4s", 0, local, b"\0\0\0\0"))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return [(level, kind, data)]
    return []


def _close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def main() -> NoReturn:
    """python -m podlane.lab.runtime.responder CONFIG: the responder by itself, for trying it out."""
    fd = os.open(sys.argv[1], os.O_RDONLY | os.O_CLOEXEC)
    serve(fd, ready=lambda: None)


if __name__ == "__main__":
    main()
