"""Real packets between namespaces, through sockets that live in them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from podlane.kernel import netns
from podlane.model.addresses import Address, family_of

# A packet that does not come in this time was lost: nothing here waits for it when all is well.
LOST_S = 5.0


def _socket(namespace: int, kind: int, address: Address) -> socket.socket:
    made = netns.socket_in(namespace, family_of(address).af, kind)
    made.settimeout(LOST_S)
    return made


def udp(client: int, server: int, address: Address, size: int = 8) -> Address:
    """A datagram from client to address in server, and one back. Returns the source the server saw.

    Raises TimeoutError or OSError if either is lost.
    """
    with (
        _socket(server, socket.SOCK_DGRAM, address) as there,
        _socket(client, socket.SOCK_DGRAM, address) as here,
    ):
        there.bind((str(address), 0))
        here.connect(there.getsockname()[:2])
        here.send(b"q" * size)
        data, peer = there.recvfrom(65535)
        there.sendto(data, peer)
        assert here.recv(65535) == b"q" * size
        return ipaddress.ip_address(peer[0])


def tcp(client: int, server: int, address: Address, size: int = 100_000) -> Address:
    """A connection from client to address in server, with size bytes sent. Returns the source seen."""
    with _socket(server, socket.SOCK_STREAM, address) as listener:
        listener.bind((str(address), 0))
        listener.listen()
        with _socket(client, socket.SOCK_STREAM, address) as here:
            here.connect(listener.getsockname()[:2])
            there, peer = listener.accept()
            with there:
                there.settimeout(LOST_S)
                here.setblocking(False)
                left, got = size, 0
                while got < size:
                    if left:
                        with contextlib.suppress(BlockingIOError):
                            left -= here.send(b"x" * min(left, 16384))
                    got += len(there.recv(65536))
                return ipaddress.ip_address(peer[0])
