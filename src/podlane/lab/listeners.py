"""The sockets the lab's API listens on: on the machine's loopback, and in the fabric as host `control`."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from podlane.errors import LabError
from podlane.kernel import netns
from podlane.lab.api.bootstrap import API_PORT
from podlane.model.addresses import Family, address

# linux/in.h, linux/in6.h
IP_FREEBIND = 15
IPV6_FREEBIND = 78
BACKLOG = 1024


def on_loopback(port: int) -> socket.socket:
    """Listens on 127.0.0.1 at `port`, at any that is free when 0. Raises LabError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise LabError(
            f"port {port} on 127.0.0.1: {error.strerror}; choose another with --api-port, or leave it out"
        ) from None
    return listener


def in_fabric(pid: int, addresses: Sequence[str]) -> list[socket.socket]:
    """Listens at `addresses` in the network namespace of `pid`, before the fabric has them (freebind)."""
    namespace = netns.open_pid(pid)
    try:
        return [_in_namespace(namespace, text) for text in addresses]
    finally:
        os.close(namespace)


def _in_namespace(namespace: int, text: str) -> socket.socket:
    family = Family.IPV4 if address(text).version == 4 else Family.IPV6
    listener = netns.socket_in(namespace, family.af, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family is Family.IPV4:
        listener.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    else:
        listener.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind((text, API_PORT))
    listener.listen(BACKLOG)
    return listener
