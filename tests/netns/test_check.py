"""Conversations over real links: what passes, what fails, and in which words."""

from __future__ import annotations

import ipaddress
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from podlane.kernel import netns
from podlane.lab.runtime.conversation import Conversation, Identity, answer
from podlane.model.addresses import Address, Family, Protocol
from podlane.observe.check import Place, Report, check
from podlane.observe.check_plan import Step, plan
from podlane.observe.ground import Ground, Member, Port, Ready, Served
from podlane.observe.text import report_lines
from tests.netns.two_nodes import PODS, Nodes

SERVER = Identity("server", "default", "node-2")


@contextmanager
def responder(namespace: int, port: int = 8080) -> Iterator[None]:
    """The lab's own words on TCP and UDP, both families, served by a thread."""
    with selectors.DefaultSelector() as waiting:
        wake, stop = socket.socketpair()
        waiting.register(wake, selectors.EVENT_READ)
        listeners = [
            netns.socket_in(namespace, socket.AF_INET6, kind)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ]
        for listener in listeners:
            listener.bind(("::", port))
            waiting.register(listener, selectors.EVENT_READ)
        listeners[0].listen(64)

        def serve() -> None:
            while True:
                for key, _ in waiting.select():
                    if key.fileobj is wake:
                        return
                    if key.fileobj is listeners[1]:
                        _, peer = listeners[1].recvfrom(2048)
                        listeners[1].sendto(answer(SERVER, peer[0].removeprefix("::ffff:")), peer)
                        continue
                    connection, peer = listeners[0].accept()
                    with connection:
                        talk = Conversation(SERVER, peer[0].removeprefix("::ffff:"))
                        while not talk.finished and (data := connection.recv(4096)):
                            connection.sendall(talk.receive(data))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            stop.send(b"x")
            thread.join()
            for each in (*listeners, wake, stop):
                each.close()


@pytest.fixture
def nodes(namespaces: Callable[[], int]) -> Nodes:
    return Nodes(namespaces)


def places(nodes: Nodes) -> dict[str, Place]:
    return {name: Place(f"/proc/self/fd/{fd}") for name, fd in nodes.places.items()}


def own(number: int) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_address(own.format(number)) for _, own, *_ in PODS.values())


def uplinks(number: int) -> tuple[Address, ...]:
    return tuple(ipaddress.ip_interface(p[4].format(number)).ip for p in PODS.values())


def ground() -> Ground:
    ports = tuple(
        Port("main", 8080, protocol, family, json=True)
        for family in Family
        for protocol in (Protocol.TCP, Protocol.UDP)
    )
    ready = (Ready("node-2", ("default", "server"), json=True, served=True),)
    return Ground(
        nodes={"node-1": uplinks(1), "node-2": uplinks(2)},
        members=(
            Member("default/pod/client", "node-1", own(1), ("main",), ()),
            Member("default/pod/server", "node-2", own(2), ("main", "side"), ports),
        ),
        services=tuple(
            Served("default/svc/web", ipaddress.ip_address(p[3]), 80, protocol, 0, (), ready)
            for p in PODS.values()
            for protocol in (Protocol.TCP, Protocol.UDP)
        ),
    )


def run(nodes: Nodes, steps: list[Step], timeout_s: float = 2.0) -> Report:
    return check(steps, ground(), places(nodes), timeout_s=timeout_s)


def planned() -> list[Step]:
    """What the hand-made nodes can do: only node-1 translates, and only what pods send."""
    return [
        s
        for s in plan(ground())
        if not (s.kind == "node-service" or (s.kind == "pod-service" and "server" in s.place))
    ]


def test_every_planned_conversation_succeeds(nodes: Nodes) -> None:
    with responder(nodes.places["default/pod/server"]):
        report = run(nodes, planned())
    assert [c for c in report.checks if not c.ok] == []
    kinds = {c.kind for c in report.checks}
    assert kinds == {
        "container-localhost",
        "pod-pod-cross-node",
        "pod-node",
        "node-pod",
        "pod-service",
        "no-nat",
    }
    assert report.passed == len(report.checks)
    assert {c.detail.split()[0] for c in report.checks} == {"IPv4", "IPv6"}


def test_nobody_listening_is_refused_and_the_hint_is_given(nodes: Nodes) -> None:
    steps = [s for s in planned() if s.kind == "pod-pod-cross-node"]
    report = run(nodes, steps)
    assert report.failed == len(steps) == 2
    assert all(c.detail.endswith("Connection refused") for c in report.checks)
    lines = list(report_lines(report))
    assert "       try: podlane explain default/pod/client default/pod/server:8080" in lines
    assert lines[-1] == "0 passed, 2 failed"


def test_an_address_nobody_answers_for_is_no_answer_in_time(nodes: Nodes) -> None:
    step = Step("pod-pod-cross-node", "default/pod/client", "a", "b", ipaddress.ip_address("10.96.0.1"), 82)
    (failed,) = run(nodes, [step], timeout_s=0.2).checks
    assert (failed.ok, failed.detail) == (False, "IPv4 10.96.0.1:82/TCP: no answer within 0.2 s")


def test_the_wrong_pod_is_found_out(nodes: Nodes) -> None:
    step = next(s for s in planned() if s.kind == "pod-service")
    wrong = msgspec.structs.replace(step, allowed=frozenset({("default", "other")}))
    with responder(nodes.places["default/pod/server"]):
        (failed,) = run(nodes, [wrong]).checks
    assert not failed.ok
    assert failed.detail.endswith("answered by default/pod/server, not by default/pod/other")


def test_translation_between_pods_is_found_out(nodes: Nodes) -> None:
    rules = (
        "table ip n { chain p { type nat hook postrouting priority 100; oifname plvxlan masquerade; }\n}\n"
    )
    netns.inside(
        nodes.places["node/node-1"],
        lambda: subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True),
    )
    step = next(s for s in planned() if s.kind == "pod-pod-cross-node" and s.family is Family.IPV4)
    with responder(nodes.places["default/pod/server"]):
        report = run(nodes, [step])
    assert [(c.kind, c.ok) for c in report.checks] == [("pod-pod-cross-node", True), ("no-nat", False)]
    assert report.checks[1].detail.endswith("seen as 10.244.1.0, sent from 10.244.1.2")


def test_a_place_that_is_gone_fails_its_own_checks_alone(nodes: Nodes) -> None:
    steps = [s for s in planned() if s.kind == "pod-node"]
    known = {k: v for k, v in places(nodes).items() if k != "default/pod/client"}
    report = check(steps, ground(), known)
    assert {c.source: c.ok for c in report.checks} == {
        "default/pod/client": False,
        "default/pod/server": True,
    }
    assert any("has no network namespace here" in c.detail for c in report.checks)
    ended = check(steps, ground(), known | {"default/pod/client": Place("/proc/0/ns/net")})
    assert [c.detail.rpartition(": ")[2] for c in ended.checks if not c.ok] == [
        "default/pod/client went away meanwhile"
    ] * sum(s.place == "default/pod/client" for s in steps)
    nobody = {k: v for k, v in places(nodes).items() if not k.startswith("node/")}
    assert run_in(nobody, steps).passed == 0


def run_in(known: dict[str, Place], steps: list[Step]) -> Report:
    return check(steps, ground(), known, timeout_s=0.5)


def test_the_report_is_the_contracts_json(nodes: Nodes) -> None:
    with responder(nodes.places["default/pod/server"]):
        document = msgspec.json.decode(run(nodes, [s for s in planned() if s.kind == "node-pod"]).json())
    assert set(document) == {"apiVersion", "kind", "checks", "passed", "failed"}
    assert set(document["checks"][0]) == {"kind", "from", "to", "ok", "ms", "detail"}
    assert (document["passed"], document["failed"]) == (len(document["checks"]), 0)
