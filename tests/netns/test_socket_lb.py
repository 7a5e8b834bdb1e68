"""Services at the socket, with real ones: what connects, what it is told, and what becomes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from podlane.kernel.bpf import layout
from podlane.model.addresses import Family, address
from podlane.model.objects import ClientIPConfig, LoadBalancerIngress, SessionAffinityConfig
from tests.netns.service_lab import PLANS, PODS, PORT, Answer, ServiceLab, service_lab
from tests.netns.socket_site import (
    DATAGRAM,
    HOWS,
    STREAM,
    How,
    SocketSite,
    asked,
    connect,
    line,
    running,
    service_address,
    services_of,
    web,
)
from tests.netns.test_services import NODE_PORT


@pytest.fixture(scope="module")
def lab() -> Iterator[ServiceLab]:
    with service_lab() as lab:
        yield lab


@pytest.fixture
def site(lab: ServiceLab, tmp_path: Path) -> Iterator[SocketSite]:
    with running(lab, tmp_path / "bpf") as site:
        yield site


@pytest.fixture(params=list(Family))
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


@pytest.fixture(params=list(HOWS))
def how(request: pytest.FixtureRequest) -> How:
    return HOWS[request.param]


# --- what connects --------------------------------------------------------------------------------


def test_tcp_is_connected_to_an_endpoint_and_shows_the_service(site: SocketSite, how: How) -> None:
    site.set(*web(how.family, "local-1"))
    with connect(site, how) as stream:
        assert line(stream).server == "local-1"
        assert stream.getpeername()[:2] == how(service_address(how.family))
        assert services_of(site) == {("web-10", PLANS[how.family].pod(5)): 1}
        # No packet was translated: the pod's own flow leads to the endpoint.
        assert not flows_to(site, service_address(how.family))


def flows_to(site: SocketSite, where: str) -> str:
    return site.lab.run("node", "conntrack", "-L", "-d", where, "-f", "ipv6" if ":" in where else "ipv4")


def test_every_endpoint_gets_its_share(site: SocketSite, family: Family) -> None:
    site.set(*web(family, "local-1", "local-2", "remote"))
    how = How(family, in_six=False)
    found = Counter(asked(site, how).server for _ in range(90))
    assert set(found) == {"local-1", "local-2", "remote"}
    counted = {str(backend.address): n for (_, backend), n in site.driver.chosen().items()}
    plan = PLANS[family]
    assert counted == {
        plan.pod(5): found["local-1"],
        plan.pod(6): found["local-2"],
        plan.remote: found["remote"],
    }


@pytest.mark.parametrize("name", ["client", "node"])
def test_udp_in_every_manner(site: SocketSite, how: How, name: str) -> None:
    """A datagram socket, connected or not, gets answers from whom it asked."""
    site.set(*web(how.family, "local-1", "local-2", "remote"))
    to = how(service_address(how.family))
    with site.socket(name, how.af, DATAGRAM) as loose, site.socket(name, how.af, DATAGRAM) as tied:
        servers = set()
        for _ in range(6):
            loose.sendto(b"?", to)
            data, peer = loose.recvfrom(4096)
            servers.add(json.loads(data)[0])
            assert peer[:2] == to
        assert len(servers) == 1  # one socket stays with one endpoint
        tied.connect(to)
        tied.send(b"?")
        data, peer = tied.recvfrom(4096)
        assert peer[:2] == to
        assert tied.getpeername()[:2] == to
        tied.send(b"?")
        assert json.loads(tied.recv(4096))[0] == json.loads(data)[0]


def test_one_udp_socket_and_many_services(site: SocketSite, family: Family) -> None:
    """Each answer comes from the service that was asked, though the endpoint is the same... port and all."""
    wanted = [each for n in range(20, 20 + layout.SLOTS) for each in web(family, "local-1", number=n)]
    site.set(*wanted)
    how = How(family, in_six=False)
    with site.socket("client", how.af, DATAGRAM) as each:
        for number in range(20, 20 + layout.SLOTS):
            each.sendto(b"?", how(service_address(family, number)))
            assert json.loads(each.recv(4096))[0] == "local-1"
        # Straight to a pod it is nobody's service.
        each.sendto(b"?", (PLANS[family].remote, PORT))
        data, peer = each.recvfrom(4096)
        assert json.loads(data)[0] == "remote"
        assert peer[:2] == (PLANS[family].remote, PORT)


def test_a_socket_used_again_forgets_the_service(site: SocketSite, family: Family) -> None:
    site.set(*web(family, "local-1"))
    how, plan = How(family, in_six=False), PLANS[family]
    with site.socket("client", how.af, DATAGRAM) as each:
        each.connect(how(service_address(family)))
        assert each.getpeername()[:2] == how(service_address(family))
        each.connect((plan.pod(5), PORT))
        assert each.getpeername()[:2] == (plan.pod(5), PORT)


def test_hairpin(site: SocketSite, family: Family) -> None:
    """A pod that reaches itself sees itself, and no masquerade."""
    site.set(*web(family, "local-1"))
    own = PLANS[family].pod(PODS["local-1"])
    assert asked(site, How(family, in_six=False), "local-1") == Answer("local-1", own)


def test_node_ports_and_external_addresses(site: SocketSite, family: Family) -> None:
    """From a pod and from the node any node's endpoints answer, policy Local or not; the source stays."""
    plan, how = PLANS[family], How(family, in_six=False)
    vip = "203.0.113.7" if family is Family.IPV4 else "2001:db8:7::7"
    spec = {"type": "NodePort", "external_ips": [vip], "external_traffic_policy": "Local"}
    site.set(*web(family, "remote", **spec))
    for name in ("client", "node"):
        for where, port in ((plan.node, NODE_PORT), (vip, 80)):
            answer = asked(site, how, name, where, port)
            assert answer.server == "remote"
            assert answer.client == (plan.pod(PODS["client"]) if name == "client" else plan.node)
    assert sum(site.driver.chosen().values()) == 4


def test_node_ports_cannot_be_bound_on_the_node(site: SocketSite, family: Family) -> None:
    site.set(*web(family, "local-1", type="NodePort"))
    af, plan = How(family, in_six=False).af, PLANS[family]
    loopback = "127.0.0.1" if family is Family.IPV4 else "::1"
    for kind in (STREAM, DATAGRAM):
        for where in ("", plan.node):
            with site.socket("node", af, kind) as each, pytest.raises(OSError, match="in use"):
                each.bind((where, NODE_PORT))
        for name, where, port in (("node", loopback, NODE_PORT), ("node", "", 0), ("client", "", NODE_PORT)):
            with site.socket(name, af, kind) as each:
                each.bind((where, port))


# --- what it leaves to nftables -------------------------------------------------------------------


def test_what_is_not_held_is_left_to_nftables(site: SocketSite, family: Family) -> None:
    plan, how = PLANS[family], How(family, in_six=False)
    vip = "203.0.113.8" if family is Family.IPV4 else "2001:db8:7::8"
    guarded = {
        "type": "LoadBalancer",
        "load_balancer_source_ranges": [f"{plan.pod(PODS['client'])}/{32 if family is Family.IPV4 else 128}"],
    }
    site.set(
        *web(family),  # without endpoints
        *web(family, "remote", number=11, internal_traffic_policy="Local"),
        *web(family, "local-1", number=12, ingress=[LoadBalancerIngress(vip)], **guarded),
    )
    with pytest.raises(ConnectionRefusedError):
        connect(site, how)
    with pytest.raises(ConnectionRefusedError):  # a port that nobody serves
        connect(site, how, port=81)
    with site.socket("client", how.af, STREAM) as each:
        each.settimeout(0.3)
        with pytest.raises(TimeoutError):
            each.connect((service_address(family, 11), 80))
    assert asked(site, how, where=vip).server == "local-1"
    assert site.driver.chosen() == {}  # all of it was nftables


def test_who_is_outside_of_the_cgroup_meets_nftables(site: SocketSite, family: Family) -> None:
    site.set(*web(family, "local-1", type="NodePort"))
    assert site.lab.ask("client", service_address(family)).server == "local-1"
    assert site.driver.chosen() == {}


# --- what becomes of connections ------------------------------------------------------------------


def test_connections_to_an_endpoint_that_is_gone_end(site: SocketSite, how: How) -> None:
    """Those to endpoints that stay, and those that used no service, do not."""
    site.set(*web(how.family, "local-1"))
    to, plan = how(service_address(how.family)), PLANS[how.family]
    with (
        connect(site, how) as gone,
        site.socket("client", how.af, DATAGRAM) as tied,
        site.socket("client", how.af, DATAGRAM) as loose,
        connect(site, how, where=plan.pod(5), port=PORT) as direct,
    ):
        line(gone), line(direct)
        tied.connect(to)
        loose.sendto(b"?", to)
        assert json.loads(loose.recv(4096))[0] == "local-1"
        assert services_of(site) == {("web-10", plan.pod(5)): 2}
        site.set(*web(how.family, "local-2"))
        for each in (gone, tied):
            with pytest.raises(ConnectionAbortedError):
                each.recv(4096)
        assert site.driver.ending.deleted == 2
        direct.sendall(b"still there")
        assert direct.recv(4096) == b"still there"
        loose.sendto(b"?", to)  # asks anew
        assert json.loads(loose.recv(4096))[0] == "local-2"


def test_connections_to_an_endpoint_that_still_serves_go_on(site: SocketSite, family: Family) -> None:
    how = How(family, in_six=False)
    site.set(*web(family, "local-1", "local-2"))
    streams = [connect(site, how) for _ in range(12)]
    servers = [line(each).server for each in streams]
    assert set(servers) == {"local-1", "local-2"}
    site.set(*web(family, "local-2"))
    for stream, server in zip(streams, servers, strict=True):
        with stream:
            if server == "local-1":
                with pytest.raises(ConnectionAbortedError):
                    stream.recv(4096)
            else:
                stream.sendall(b"x")
                assert stream.recv(1) == b"x"


def test_a_pod_that_only_left_its_service_keeps_its_connections(site: SocketSite) -> None:
    """And a service that goes leaves its connections alone, but for datagrams."""
    how, plan = How(Family.IPV4, in_six=False), PLANS[Family.IPV4]
    site.kept = frozenset({address(plan.pod(5))})
    site.set(*web(Family.IPV4, "local-1"))
    with connect(site, how) as stream, site.socket("client", how.af, DATAGRAM) as tied:
        line(stream)
        site.set(*web(Family.IPV4, "local-2"))
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        tied.connect(how(service_address(Family.IPV4)))
        with connect(site, how) as other:
            line(other)
            site.set()
            for each in (stream, other):
                each.sendall(b"y")
                assert each.recv(1) == b"y"
            with pytest.raises(ConnectionAbortedError):
                tied.recv(1)
        site.kept = frozenset()  # now it is deleted: that is asked for again
        with pytest.raises(ConnectionAbortedError):
            stream.recv(1)


def test_affinity_keeps_a_client_until_its_endpoint_goes(site: SocketSite, family: Family) -> None:
    sticky = {
        "session_affinity": "ClientIP",
        "session_affinity_config": SessionAffinityConfig(ClientIPConfig(60)),
    }
    how = How(family, in_six=False)
    site.set(*web(family, "local-1", "local-2", "remote", **sticky))
    chosen = asked(site, how).server
    assert {asked(site, how).server for _ in range(12)} == {chosen}
    left = [name for name in ("local-1", "local-2", "remote") if name != chosen]
    site.set(*web(family, *left, **sticky))
    assert {asked(site, how).server for _ in range(12)} < set(left)
