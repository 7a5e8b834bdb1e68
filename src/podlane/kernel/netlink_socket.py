"""A netlink socket that runs requests, transactions and dumps (codec: kernel/netlink.py).

The kernel executes a request inside send(2) and queues the answer before it returns, so every call
here blocks for as long as the kernel works: call it on a worker thread. Threads may share a Netlink
object; their exchanges take turns.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable, Sequence

from podlane.errors import KernelBusyError, KernelError
from podlane.kernel import netns, own_ports
from podlane.kernel.netlink import (
    HEADER_BYTES,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_OVERRUN,
    Message,
    Request,
    pack_message,
    unpack_answer,
    unpack_messages,
)

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 1, 10, 11, 12
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33

# Each acknowledgement of a batch waits in the receive buffer until the batch has been executed, and
# takes a good kilobyte there: so many requests fit safely.
_BATCH_REQUESTS = 1000
_BATCH_BYTES = 256 * 1024
_RECEIVE_BYTES = 256 * 1024
_BUFFER_BYTES = 4 * 1024 * 1024
_TIMEOUT_S = 60
_DUMP_ATTEMPTS = 20


class Netlink:
    """A netlink socket in the caller's network namespace, or in that of netns_fd.

    groups: multicast groups to hear (see `receive`). Raises KernelError; close it, or use `with`.
    """

    def __init__(
        self, protocol: int = NETLINK_ROUTE, netns_fd: int | None = None, *, groups: Iterable[int] = ()
    ) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        try:
            if netns_fd is None:
                self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
            else:
                self._socket = netns.socket_in(netns_fd, socket.AF_NETLINK, kind, protocol)
        except OSError as error:
            raise KernelError.of(error.errno or 0, f"netlink socket of protocol {protocol}") from None
        try:
            self._socket.bind((0, 0))
            self._port: int = self._socket.getsockname()[0]
            for option in (_NETLINK_EXT_ACK, _NETLINK_CAP_ACK, _NETLINK_GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
            # No answer is ever late (see above): this only turns a kernel gone wrong into an error.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _TIMEOUT_S, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            raise KernelError.of(error.errno or 0, "netlink socket options") from None
        own_ports.add(self._port)
        self._turn = threading.Lock()
        self._send_buffer_bytes = _BUFFER_BYTES
        self._sequence = int.from_bytes(os.urandom(2), "big")
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._view = memoryview(self._buffer)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            own_ports.remove(self._port)
        self._socket.close()

    def ignore_own(self) -> None:
        """Not to hear of what the sockets do that this process has by now (see own_ports)."""
        own_ports.do_not_hear(self._socket, own_ports.ports())

    def fileno(self) -> int:
        return self._socket.fileno()

    def execute(self, requests: Sequence[Request]) -> list[KernelError | None]:
        """Runs requests in order; one verdict each, None for success. A refusal stops no other request."""
        return self.exchange(requests)[0]

    def exchange(self, requests: Sequence[Request]) -> tuple[list[KernelError | None], list[list[Message]]]:
        """Runs requests in order, GETs of one object among them: the verdicts, and what answered each."""
        verdicts: list[KernelError | None] = []
        found: list[list[Message]] = [[] for _ in requests]
        start = 0
        while start < len(requests):
            end, size = start, 0
            while end < len(requests) and end - start < _BATCH_REQUESTS:
                size += HEADER_BYTES + len(requests[end].body)
                if end > start and size > _BATCH_BYTES:
                    break
                end += 1
            with self._turn:
                verdicts += self._execute(requests[start:end], found[start:end])
            start = end
        return verdicts, found

    def do(self, *requests: Request) -> None:
        """Runs requests in order. Raises the first refusal, after all have been tried."""
        for error in self.execute(requests):
            if error is not None:
                raise error

    def ask(self, request: Request) -> list[Message]:
        """The messages that answer one request (a GET of one object, or an echo). Raises KernelError."""
        with self._turn:
            return self._collect(request)[0]

    def dump(self, request: Request) -> list[Message]:
        """All objects the request's filter matches, as one consistent reading.

        A dump during which the set changed (NLM_F_DUMP_INTR) is begun again; KernelBusyError if that
        never succeeds.
        """
        asked = request._replace(flags=request.flags | NLM_F_DUMP)
        for _ in range(_DUMP_ATTEMPTS):
            with self._turn:
                found, interrupted = self._collect(asked)
            if not interrupted:
                return found
        raise KernelBusyError(errno.EBUSY, request.operation, "changed during each of its dumps")

    def transaction(
        self, messages: Sequence[Request], *, begin: Request, end: Request
    ) -> list[KernelError | None]:
        """An nfnetlink batch in one datagram: all messages take effect or none.

        Returns one verdict a message, all None if the batch was committed. A refusal of the whole
        batch (out of memory, a generation that moved) is raised as KernelError.
        """
        with self._turn:
            return self._transact(messages, begin, end)

    def receive(self) -> list[Message]:
        """Messages of the multicast groups; waits for the first.

        Raises KernelError with ENOBUFS when some were lost: read everything anew and go on.
        """
        return self._receive("netlink events")

    # --- one datagram ---

    def _execute(self, requests: Sequence[Request], found: list[list[Message]]) -> list[KernelError | None]:
        """found: for each request, a list that takes what answers it."""
        first = self._send(requests)
        last = len(requests) - 1
        verdicts: list[KernelError | None] = [None] * len(requests)
        while True:
            for message in self._receive(requests[last].operation):
                place = message.sequence - first
                if not 0 <= place <= last:
                    continue
                if message.type != NLMSG_ERROR:
                    found[place].append(message)
                    continue
                answer = unpack_answer(message)
                if answer.errno:
                    verdicts[place] = KernelError.of(answer.errno, requests[place].operation, answer.detail)
                if place == last:
                    return verdicts

    def _transact(
        self, messages: Sequence[Request], begin: Request, end: Request
    ) -> list[KernelError | None]:
        parts: list[bytes] = []
        first = self._first()
        for request in (begin, *messages, end):
            self._sequence += 1
            parts.append(
                pack_message(request.type, NLM_F_REQUEST | request.flags, self._sequence, request.body)
            )
        data = b"".join(parts)
        self._reserve(2 * len(data))
        self._write(data, begin.operation)
        verdicts: list[KernelError | None] = [None] * len(messages)
        refused: KernelError | None = None
        # Success is silent, so the end of what the kernel queued is the end of the answer.
        while (received := self._poll(begin.operation)) is not None:
            for message in received:
                place = message.sequence - first
                if message.type != NLMSG_ERROR or not 0 <= place <= len(messages) + 1:
                    continue
                answer = unpack_answer(message)
                if not answer.errno:
                    continue
                if not 1 <= place <= len(messages):
                    refused = KernelError.of(answer.errno, begin.operation, answer.detail)
                elif verdicts[place - 1] is None:
                    operation = messages[place - 1].operation
                    verdicts[place - 1] = KernelError.of(answer.errno, operation, answer.detail)
        if refused is not None:
            raise refused
        return verdicts

    def _collect(self, request: Request) -> tuple[list[Message], bool]:
        """What answers a request, up to its verdict; and whether a change interrupted the reading."""
        sequence = self._send([request])
        found: list[Message] = []
        interrupted = False
        while True:
            for message in self._receive(request.operation):
                if message.sequence != sequence:
                    continue
                interrupted = interrupted or bool(message.flags & NLM_F_DUMP_INTR)
                if message.type in (NLMSG_ERROR, NLMSG_DONE):
                    answer = unpack_answer(message)
                    if answer.errno:
                        raise KernelError.of(answer.errno, request.operation, answer.detail)
                    return found, interrupted
                if message.type > NLMSG_OVERRUN:
                    found.append(message)

    def _send(self, requests: Sequence[Request]) -> int:
        """Sends requests in one datagram; returns the first one's sequence number.

        The last one alone is acknowledged: the kernel works in order, and a refusal is always told.
        """
        first = self._first()
        parts: list[bytes] = []
        for place, request in enumerate(requests, 1):
            self._sequence += 1
            flags = NLM_F_REQUEST | request.flags | (NLM_F_ACK if place == len(requests) else 0)
            parts.append(pack_message(request.type, flags, self._sequence, request.body))
        self._write(b"".join(parts), requests[0].operation)
        return first

    def _first(self) -> int:
        """The sequence number of the next request: a batch never runs over the end of the numbers."""
        if self._sequence > 1 << 31:
            self._sequence = 0
        return self._sequence + 1

    def _write(self, data: bytes, operation: str) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise KernelError.of(error.errno or 0, operation) from None

    def _reserve(self, send_bytes: int) -> None:
        if send_bytes > self._send_buffer_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, send_bytes)
            self._send_buffer_bytes = send_bytes

    def _receive(self, operation: str) -> list[Message]:
        """The next datagram's messages."""
        received = self._read(operation, 0)
        if received is None:
            raise KernelError.of(errno.ETIMEDOUT, operation, f"no answer in {_TIMEOUT_S} s")
        return received

    def _poll(self, operation: str) -> list[Message] | None:
        """The next datagram's messages, None when none is queued."""
        return self._read(operation, socket.MSG_DONTWAIT)

    def _read(self, operation: str, flags: int) -> list[Message] | None:
        try:
            size, _, marks, _ = self._socket.recvmsg_into([self._buffer], 0, flags)
        except BlockingIOError:
            return None
        except OSError as error:
            raise KernelError.of(error.errno or 0, operation) from None
        if marks & socket.MSG_TRUNC:
            raise KernelError.of(
                errno.EMSGSIZE, operation, f"the kernel's answer is longer than {_RECEIVE_BYTES} bytes"
            )
        return list(unpack_messages(bytes(self._view[:size])))
