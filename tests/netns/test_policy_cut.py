"""policy.cutEstablished: a connection that policy denies by now ends, and only that one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from podlane.kernel import netns
from podlane.kernel.nft.policy import PolicyDriver
from tests.netns.policy_lab import PolicyLab
from tests.netns.test_policy_rules import FAMILY, plain_world, policy

CLOSED = policy("x", policyTypes=["Ingress"])


@pytest.fixture(scope="module", params=["routed", "bridge"])
def lab(request: pytest.FixtureRequest) -> Iterator[PolicyLab]:
    made = PolicyLab(request.param, settings=["policy.cutEstablished=true"])
    try:
        made.build()
        yield made
    finally:
        made.close()


def settle(lab: PolicyLab) -> None:
    for drivers in lab.drivers.values():
        policy_driver: Any = drivers[0]
        assert isinstance(policy_driver, PolicyDriver)
        assert policy_driver.cutter is not None
        assert policy_driver.cutter.wait()
        assert policy_driver.cutter.left == 0


@contextlib.contextmanager
def connected(
    lab: PolicyLab, client: int | str, server: int, to: str
) -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    with netns.socket_in(lab.fds[server], family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::" if ":" in to else "0.0.0.0", 80))
        listener.listen()
        with netns.socket_in(lab.fds[client], family, socket.SOCK_STREAM) as here:
            here.settimeout(5)
            here.connect((to, 80))
            there, _ = listener.accept()
            with there:
                there.settimeout(5)
                yield here, there


def alive(here: socket.socket, there: socket.socket) -> bool:
    here.sendall(b"question")
    there.sendall(b"answer")
    return (there.recv(100), here.recv(100)) == (b"question", b"answer")


def is_reset(here: socket.socket, there: socket.socket) -> bool:
    """Each side learns it by what it sends."""
    for side in (here, there):
        side.sendall(b"anybody?")
        with pytest.raises(ConnectionResetError):
            side.recv(100)
    return True


@pytest.mark.parametrize("family", [4, 6])
def test_connections_that_are_denied_now_are_reset_and_others_go_on(lab: PolicyLab, family: int) -> None:
    lab.become(plain_world())
    near, far = lab.address(0, family), lab.address(1, family)
    with (
        connected(lab, 2, 0, near) as same_node,
        connected(lab, 3, 1, far) as untouched,
    ):
        assert alive(*same_node)
        assert alive(*untouched)
        lab.become(plain_world(CLOSED))
        settle(lab)
        assert is_reset(*same_node)
        assert alive(*untouched)


@pytest.mark.parametrize("way", ["directly", "by its service"])
def test_across_nodes_and_through_services(lab: PolicyLab, way: str) -> None:
    lab.become(plain_world())
    to = lab.address(0, 4) if way == "directly" else lab.vip(0, 4)
    with connected(lab, 1, 0, to) as flow:
        assert alive(*flow)
        lab.become(plain_world(CLOSED))
        settle(lab)
        assert is_reset(*flow)


def test_the_nodes_own_connections_go_on(lab: PolicyLab) -> None:
    lab.become(plain_world())
    with connected(lab, "n1", 0, lab.address(0, 4)) as flow:
        assert alive(*flow)
        lab.become(plain_world(CLOSED))
        settle(lab)
        assert alive(*flow)


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_allowed_again_goes_on(lab: PolicyLab, family: int) -> None:
    lab.become(plain_world())
    with (
        netns.socket_in(lab.fds[0], FAMILY[family], socket.SOCK_DGRAM) as server,
        netns.socket_in(lab.fds[2], FAMILY[family], socket.SOCK_DGRAM) as client,
    ):
        server.bind((lab.address(0, family), 5353))
        client.connect((lab.address(0, family), 5353))
        server.settimeout(5)
        client.send(b"one")
        data, peer = server.recvfrom(100)
        server.sendto(data, peer)
        lab.become(plain_world(CLOSED))
        settle(lab)
        client.send(b"two")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(100)
        lab.become(plain_world())
        settle(lab)
        client.send(b"three")
        server.settimeout(5)
        assert server.recv(100) == b"three"


def test_the_kernel_agrees(lab: PolicyLab) -> None:
    lab.become(plain_world(CLOSED))
    assert lab.in_order()
