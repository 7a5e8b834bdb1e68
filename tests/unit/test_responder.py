"""The responder on real sockets of this machine's loopback."""

from __future__ import annotations

import errno
import json
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from podlane.errors import LabError
from podlane.lab.runtime import responder
from podlane.lab.runtime.conversation import Identity
from podlane.lab.runtime.responder import Config, Port, Responder

WHO = Identity("web-0", "shop", "node-2")
FAMILIES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.fixture
def served() -> Iterator[Responder]:
    made = Responder(lambda _: None)
    yield made
    made.close()


def free_port(kind: int) -> int:
    with socket.socket(socket.AF_INET6, kind) as probe:
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


def ask(served: Responder, sock: socket.socket, enough: Callable[[bytes], bool]) -> bytes:
    """What comes back, while the responder works in this same thread."""
    got = b""
    while not enough(got):
        served.step(1.0)
        while select.select([sock], [], [], 0)[0]:
            data = sock.recv(1 << 20)
            if not data:
                return got
            got += data
    return got


@pytest.mark.parametrize("family", FAMILIES)
def test_tcp_of_both_families(served: Responder, family: socket.AddressFamily) -> None:
    port = free_port(socket.SOCK_STREAM)
    served.configure(Config(WHO, [Port(port)]))
    with socket.create_connection((FAMILIES[family], port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = ask(served, client, lambda _: False)
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["client"] == FAMILIES[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_udp_of_both_families(served: Responder, family: socket.AddressFamily) -> None:
    port = free_port(socket.SOCK_DGRAM)
    served.configure(Config(WHO, [Port(port, "UDP")]))
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((FAMILIES[family], port))  # an answer from elsewhere would not arrive
        client.send(b"anything")
        answer = json.loads(ask(served, client, bool))
    assert (answer["pod"], answer["client"], answer["method"]) == ("web-0", FAMILIES[family], "")


def test_large_echo_is_whole(served: Responder) -> None:
    port = free_port(socket.SOCK_STREAM)
    served.configure(Config(WHO, [Port(port)]))
    data = bytes(range(256)) * 8192
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setblocking(False)
        sent, got = 0, b""
        while len(got) < len(data):
            if sent < len(data) and select.select([], [client], [], 0)[1]:
                sent += client.send(data[sent:])
            served.step(0.01)
            if select.select([client], [], [], 0)[0]:
                got += client.recv(1 << 20)
    assert got == data


def test_undecided_bytes_come_back_after_a_moment(served: Responder) -> None:
    port = free_port(socket.SOCK_STREAM)
    served.configure(Config(WHO, [Port(port)]))
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET")
        assert ask(served, client, bool) == b"GET"


def test_required_port_in_use_changes_nothing(served: Responder) -> None:
    first, taken = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM)
    served.configure(Config(WHO, [Port(first)]))
    with socket.create_server(("127.0.0.1", taken)):
        other = free_port(socket.SOCK_STREAM)
        with pytest.raises(LabError, match=f"port {taken}/TCP: Address already in use"):
            served.configure(Config(WHO, [Port(other), Port(taken)]))
        for port, open_ in ((first, True), (other, False)):
            with socket.socket() as probe:
                assert (probe.connect_ex(("127.0.0.1", port)) == 0) is open_
        served.configure(Config(WHO, [Port(taken, required=False)]))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", first)) == errno.ECONNREFUSED


@pytest.mark.parametrize("absent", FAMILIES)
def test_one_family_is_enough(
    served: Responder, monkeypatch: pytest.MonkeyPatch, absent: socket.AddressFamily
) -> None:
    monkeypatch.setattr(responder, "FAMILIES", [99, *(f for f in FAMILIES if f != absent)])  # 99: no such
    port = free_port(socket.SOCK_STREAM)
    served.configure(Config(WHO, [Port(port)]))
    (present,) = [where for family, where in FAMILIES.items() if family != absent]
    with socket.create_connection((present, port)) as client:
        client.sendall(b"hello")
        assert ask(served, client, bool) == b"hello"


def test_until_nobody_comes_any_more_the_end_is_put_off(
    served: Responder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responder, "QUIET_S", 0.05)
    port = free_port(socket.SOCK_STREAM)
    served.configure(Config(WHO, [Port(port)]))
    with socket.create_connection(("127.0.0.1", port)) as kept:
        kept.sendall(b"GET /hostname HTTP/1.1\r\n\r\n")
        assert b"keep-alive" in ask(served, kept, lambda got: got.endswith(b"web-0"))
        served.end()
        assert not served.ended
        with socket.create_connection(("127.0.0.1", port)) as late:
            late.sendall(b"GET /hostname HTTP/1.1\r\n\r\n")
            assert ask(served, late, lambda _: False).endswith(b"web-0")
        kept.sendall(b"GET /hostname HTTP/1.1\r\n\r\n")
        assert b"Connection: close" in ask(served, kept, lambda _: False)
    while not served.ended:
        served.step(1.0)
