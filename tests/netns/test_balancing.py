"""Who gets which endpoint, with real packets: hashes as Python computes them, chance within its bounds."""

from __future__ import annotations

import json
import math
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from msgspec import structs

from podlane.compile import hashing
from podlane.compile.balancing import BALANCING, HASH_BY, WEIGHTS
from podlane.compile.tables import Backend, BackendList, ListKey, Table
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Family, Protocol, address
from podlane.model.objects import Service
from tests.netns.service_lab import PODS, ServiceLab, service_lab
from tests.netns.test_services import CONFIG, NODE_PORT, Net, piece, service, version

SOURCES = 40


@pytest.fixture(scope="module")
def built() -> Iterator[ServiceLab]:
    with service_lab() as lab:
        for number in range(20, 20 + SOURCES):
            lab.ip("outside", f"addr add 198.51.100.{number}/32 dev lo")
            lab.ip("outside", f"addr add 2001:db8:100::{number}/64 dev eth0 nodad")
        yield lab


@pytest.fixture(params=list(Family))
def net(built: ServiceLab, request: pytest.FixtureRequest) -> Iterator[Net]:
    net = Net(built, request.param)
    net.driver.remove()
    net.forget_flows()
    net.driver.resync(net.tables)
    yield net
    net.driver.remove()
    net.driver.close()


def annotated(net: Net, notes: dict[str, str], **spec: object) -> Service:
    found = service(net.plan, net.family, type="NodePort", **spec)
    return structs.replace(found, metadata=structs.replace(found.metadata, annotations=notes))


def row_of(net: Net, port: str = "udp") -> BackendList:
    protocol = Protocol(port.upper())
    row = net.tables[Table.BACKENDS][ListKey("default", "web", port, protocol, net.family, "cluster")]
    assert isinstance(row, BackendList)
    return row


def name_of(net: Net, backend: Backend | None) -> str:
    names = {net.plan.remote: "remote", **{net.plan.pod(n): name for name, n in PODS.items()}}
    assert backend is not None
    return names[str(backend.address)]


def ask_from(net: Net, source: str, port: int, destination: str, number: int) -> tuple[str, int]:
    """Which server answered one datagram from that address, and the port it was sent from."""
    with net.lab.socket("outside", source, socket.SOCK_DGRAM) as each:
        each.settimeout(3)
        each.bind((source, port))
        each.connect((destination, number))
        each.send(b"?")
        return json.loads(each.recv(4096))[0], each.getsockname()[1]


def sources(net: Net) -> list[str]:
    base = "198.51.100." if net.family is Family.IPV4 else "2001:db8:100::"
    return [f"{base}{number}" for number in range(20, 20 + SOURCES)]


@pytest.mark.parametrize("balancing", ["maglev", "source-hash"])
def test_a_client_falls_where_its_hash_says(net: Net, balancing: str) -> None:
    net.set(
        annotated(net, {BALANCING: balancing}), piece(net.plan, net.family, "local-1", "local-2", "remote")
    )
    row = row_of(net)
    found, destination = {}, net.plan.services.format(10)
    for source in sources(net):
        found[source] = ask_from(net, source, 0, destination, 80)[0]
        # Whatever way in, and again: the same endpoint.
        assert ask_from(net, source, 0, net.plan.node, NODE_PORT)[0] == found[source]
        assert ask_from(net, source, 0, destination, 80)[0] == found[source]
    assert found == {s: name_of(net, hashing.chosen(row, address(s))) for s in found}
    assert set(found.values()) == {"local-1", "local-2", "remote"}
    assert net.restart().operations == 0


def test_a_client_falls_where_the_hash_of_its_port_says(net: Net) -> None:
    net.set(
        annotated(net, {BALANCING: "maglev", HASH_BY: "address-port"}),
        piece(net.plan, net.family, "local-1", "local-2", "remote"),
    )
    row, source = row_of(net), sources(net)[0]
    seen = Counter[str]()
    for _ in range(40):
        server, port = ask_from(net, source, 0, net.plan.services.format(10), 80)
        assert server == name_of(net, hashing.chosen(row, address(source), port))
        seen[server] += 1
    assert len(seen) == 3


def test_an_endpoint_less_moves_its_own_clients_only(net: Net) -> None:
    slices = [
        piece(net.plan, net.family, *names)
        for names in (("local-1", "local-2", "remote"), ("local-1", "remote"))
    ]
    web, where = annotated(net, {BALANCING: "maglev"}), net.plan.services.format(10)
    net.set(web, slices[0])
    before = {s: ask_from(net, s, 0, where, 80)[0] for s in sources(net)}
    net.set(web, slices[1])
    after = {s: ask_from(net, s, 0, where, 80)[0] for s in sources(net)}
    moved = [s for s in before if before[s] not in (after[s], "local-2")]
    assert "local-2" not in after.values()
    assert len(moved) <= SOURCES // 10


def test_weights_are_kept_in_ten_thousand_flows(net: Net) -> None:
    """Within five standard deviations: one run of fair dice in a million is not. (The bench shows three.)"""
    weights = {"local-1": 5, "local-2": 3, "remote": 1}
    text = f"{net.plan.pod(5)}=5,{net.plan.pod(6)}=3,*=1"
    net.set(annotated(net, {WEIGHTS: text}), piece(net.plan, net.family, *weights))
    net.forget_flows()  # or a port that comes round would go on with what it had
    flows = 10_000
    seen = _many(net, flows)
    for name, weight in weights.items():
        share = weight / 9
        assert abs(seen[name] - flows * share) <= 5 * math.sqrt(flows * share * (1 - share)), seen


def _many(net: Net, flows: int) -> Counter[str]:
    """New UDP flows, each from a port of its own."""
    seen = Counter[str]()
    where = net.plan.services.format(10), 80
    for _ in range(flows):
        with net.lab.socket("client", where[0], socket.SOCK_DGRAM) as each:
            each.settimeout(3)
            each.connect(where)
            each.send(b"?")
            seen[json.loads(each.recv(4096))[0]] += 1
    return seen


def test_affinity_keeps_what_the_hash_chose_first(net: Net) -> None:
    web = annotated(net, {BALANCING: "maglev"}, session_affinity="ClientIP")
    net.set(web, piece(net.plan, net.family, "local-1", "local-2"))
    row, where = row_of(net), net.plan.services.format(10)
    found = {s: ask_from(net, s, 0, where, 80)[0] for s in sources(net)[:20]}
    assert found == {s: name_of(net, hashing.chosen(row, address(s))) for s in found}
    net.set(web, piece(net.plan, net.family, "local-1", "local-2", "remote"))
    assert {s: ask_from(net, s, 0, where, 80)[0] for s in found} == found


@pytest.mark.parametrize("by", ["address", "address-port"])
def test_another_version_of_the_ruleset_is_replaced_with_its_hashes(net: Net, by: str) -> None:
    net.set(
        annotated(net, {BALANCING: "maglev", HASH_BY: by}),
        service(net.plan, net.family, "plain", 11),
        piece(net.plan, net.family, "local-1", "local-2", "remote"),
        piece(net.plan, net.family, "local-1", owner="plain"),
    )
    net.lab.run("node", "nft", "rename", "chain", net.family.nft, "podlane", version(net), "version-old")
    net.driver.close()
    net.driver = ServicesDriver(CONFIG, net.lab.fds["node"])
    assert net.driver.resync(net.tables).operations == 1
    row = row_of(net)
    for source in sources(net)[:15]:
        server, port = ask_from(net, source, 0, net.plan.services.format(10), 80)
        assert server == name_of(net, hashing.chosen(row, address(source), port))
    assert net.restart().operations == 0
