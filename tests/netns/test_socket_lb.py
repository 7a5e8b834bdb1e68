"""Services at the socket, with real ones: what connects, what it is told, and what becomes of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podlane.compile import socket_lb
from podlane.compile.tables import Backend, NodePortKey, SetName, Table
from podlane.delta import delta
from podlane.kernel import cgroups
from podlane.kernel.bpf import elf, installation, layout, syscall
from podlane.kernel.bpf.sockets import SocketDriver
from podlane.model.addresses import Family, Protocol, address
from podlane.model.objects import ClientIPConfig, LoadBalancerIngress, SessionAffinityConfig
from tests.netns.service_lab import PLANS, PODS, PORT, Answer, ServiceLab, service_lab
from tests.netns.socket_site import SocketSite, scratch, service_address
from tests.netns.test_services import NODE_PORT, piece, service
from tests.property.service_tables import Tables, tables

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
EMPTY: Tables = {Table.SETS: {}, Table.BACKENDS: {}, Table.FRONTENDS: {}, Table.NODE_PORTS: {}}


@pytest.fixture(scope="module")
def lab() -> Iterator[ServiceLab]:
    with service_lab() as lab:
        yield lab


@pytest.fixture
def site(lab: ServiceLab, tmp_path: Any) -> Iterator[SocketSite]:
    with scratch(tmp_path / "bpf", lab) as place:
        site = SocketSite(lab, place)
        try:
            site.start()
            yield site
        finally:
            site.close()


@pytest.fixture(params=list(Family))
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


class How:
    """A way to reach an address: the socket's family, and the address as that family writes it."""

    def __init__(self, family: Family, *, in_six: bool) -> None:
        self.family = family
        self.af = socket.AF_INET6 if in_six or family is Family.IPV6 else socket.AF_INET
        self._prefix = "::ffff:" if in_six and family is Family.IPV4 else ""

    def __call__(self, where: str, port: int = 80) -> tuple[str, int]:
        return self._prefix + where, port


HOWS = {
    "IPv4": How(Family.IPV4, in_six=False),
    "IPv6": How(Family.IPV6, in_six=True),
    "IPv4 by an IPv6 socket": How(Family.IPV4, in_six=True),
}


@pytest.fixture(params=list(HOWS))
def how(request: pytest.FixtureRequest) -> How:
    return HOWS[request.param]


def web(family: Family, *names: str, number: int = 10, **spec: Any) -> tuple[Any, Any]:
    plan, owner = PLANS[family], f"web-{number}"
    made = service(plan, family, owner, number, **spec)
    return made, piece(plan, family, *names, owner=owner)


def line(stream: socket.socket) -> Answer:
    data = b""
    while not data.endswith(b"\n"):
        data += stream.recv(4096)
    return Answer(*json.loads(data))


def connect(
    site: SocketSite, how: How, name: str = "client", where: str = "", port: int = 80
) -> socket.socket:
    made = site.socket(name, how.af, STREAM)
    made.connect(how(where or service_address(how.family), port))
    return made


def asked(site: SocketSite, how: How, name: str = "client", where: str = "", port: int = 80) -> Answer:
    with connect(site, how, name, where, port) as stream:
        return line(stream)


def services_of(site: SocketSite) -> Counter[tuple[str, str]]:
    """What is kept with sockets: (service or "", endpoint's address)"""
    return Counter(
        (use.list.service if use.list else "", str(use.seen.bound.backend.address))
        for use in site.driver.uses()
    )


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


# --- life -----------------------------------------------------------------------------------------


def test_a_driver_that_is_killed_leaves_everything_and_finds_it_again(site: SocketSite) -> None:
    family = Family.IPV4
    how = How(family, in_six=False)
    site.set(*web(family, "local-1"))
    with connect(site, how) as before, site.socket("client", how.af, DATAGRAM) as loose:
        line(before)
        loose.sendto(b"?", how(service_address(family)))
        loose.recv(4096)
        site.driver.close()
        # Nobody is there, and still they come.
        assert asked(site, how).server == "local-1"
        loose.sendto(b"?", how(service_address(family)))
        assert loose.recvfrom(4096)[1] == how(service_address(family))
        links = link_programs(site)
        report = site.restart()
        assert report.operations == 0
        assert report.failures == ()
        assert link_programs(site) == links
        assert before.getpeername() == how(service_address(family))
        before.sendall(b"x")
        assert before.recv(1) == b"x"
        assert sum(site.driver.chosen().values()) == 4 - 1  # two streams, one socket of datagrams


def link_programs(site: SocketSite) -> dict[str, int]:
    found = {}
    for path in site.site.directory.glob("link_*"):
        fd = syscall.pinned(str(path))
        assert fd is not None
        found[path.name] = syscall.link_info(fd).program
        os.close(fd)
    assert len(found) == 11
    return found


def test_what_went_while_nobody_was_there_ends_at_the_start(site: SocketSite) -> None:
    family = Family.IPV4
    how = How(family, in_six=False)
    site.set(*web(family, "local-1"), *web(family, "local-1", number=11))
    with connect(site, how) as gone, connect(site, how, where=service_address(family, 11)) as kept:
        line(gone), line(kept)
        site.driver.close()
        other = SocketSite.__new__(SocketSite)  # compiles, and has no driver that would hear of it
        other.__dict__.update(site.__dict__)
        other.driver = Deaf()  # type: ignore[assignment]
        other.set(*web(family, "local-2"))
        site.tables = other.tables
        site.restart()
        assert site.driver.ending.wait()
        with pytest.raises(ConnectionAbortedError):
            gone.recv(4096)
        kept.sendall(b"x")  # of a service that is gone it is not known
        assert kept.recv(1) == b"x"
        assert asked(site, how).server == "local-2"


class Deaf:
    tables = (Table.SETS, Table.BACKENDS, Table.FRONTENDS, Table.NODE_PORTS)

    class ending:
        @staticmethod
        def wait() -> bool:
            return True

    @staticmethod
    def apply(changes: Any) -> Any:
        class report:
            failures = ()

        return report


def test_other_programs_and_maps_are_exchanged_in_place(
    site: SocketSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family.IPV4
    how = How(family, in_six=False)
    site.set(*web(family, "local-1"))
    links = link_programs(site)
    with connect(site, how) as before:
        line(before)
        # Another layout: new maps, filled before the links run programs that use them.
        monkeypatch.setattr(layout, "LAYOUT", layout.LAYOUT + 1)
        assert site.restart().failures == ()
        changed = link_programs(site)
        assert all(changed[name] != links[name] for name in links)
        assert asked(site, how).server == "local-1"
        before.sendall(b"x")
        assert before.recv(1) == b"x"
    assert site.restart().operations == 0
    # A link whose pin somebody took away is made anew.
    (site.site.directory / "link_connect4").unlink()
    assert site.restart().operations == 1
    assert asked(site, how).server == "local-1"
    assert site.driver.chosen()


def test_a_program_of_another_version_is_exchanged_and_maps_stay(
    site: SocketSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = How(Family.IPV4, in_six=False)
    site.set(*web(Family.IPV4, "local-1"))
    with connect(site, how) as stream:
        line(stream)
        links, maps = link_programs(site), map_ids(site)
        # r0 = 1; exit: a hook that lets everything go on.
        other = elf.Code(bytes.fromhex("b700000001000000" + "9500000000000000"), ())
        original = elf.programs

        def programs(image: bytes) -> dict[str, elf.Code]:
            return original(image) | {"bind4": other}

        with monkeypatch.context() as patched:
            patched.setattr(elf, "programs", programs)
            assert site.restart().operations == 1
        changed = {name for name, program in link_programs(site).items() if program != links[name]}
        assert changed == {"link_bind4"}
        assert site.restart().operations == 1  # and back again
        assert map_ids(site) == maps
        assert stream.getpeername() == how(service_address(Family.IPV4))
        assert sum(site.driver.chosen().values()) == 1


def map_ids(site: SocketSite) -> dict[str, int]:
    return {name: syscall.map_info(fd).id for name, fd in site.driver._installed.maps.items()}


def test_no_new_connection_is_lost_while_everything_changes(
    site: SocketSite, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoints come and go, maps grow, agents die and upgrade: who connects is answered each time."""
    lists = [("local-1", "local-2", "remote"), ("local-2",), ("remote", "local-2"), ("local-2", "local-1")]
    site.set(*web(family, *lists[0]))
    how, plan = How(family, in_six=False), PLANS[family]
    site.kept = frozenset(map(address, (plan.pod(5), plan.pod(6), plan.remote)))
    failed: list[BaseException] = []
    made = Counter[str]()
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                made[site.lab.ask("client", *how(service_address(family))).server] += 1
                made[site.lab.ask("client", *how(service_address(family)), Protocol.UDP).server] += 1
        except BaseException as error:
            failed.append(error)

    with cgroups.joined(site.site.cgroup):
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for round_ in range(20):
                others = [e for n in range(20, 20 + round_ % 7) for e in web(family, "remote", number=n)]
                site.set(*web(family, *lists[round_ % len(lists)]), *others, wait=False)
                time.sleep(0.01)
                if round_ % 6 == 5:
                    monkeypatch.setattr(layout, "LAYOUT", layout.LAYOUT + round_ % 4)
                    assert site.restart().failures == ()
                if round_ % 8 == 7:
                    with site.driver._maps:
                        site.driver._installed.grow(layout.BACKENDS)
        finally:
            stop.set()
            asking.join()
    assert failed == []
    assert made["local-2"] > 10  # which is in every list
    before = sum(site.driver.chosen().values())
    asked(site, how)
    assert sum(site.driver.chosen().values()) == before + 1


def test_maps_grow_when_they_are_full(site: SocketSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.close()
    small = {
        name: spec._replace(entries=2) if name in layout.DESIRED else spec
        for name, spec in layout.SPECS.items()
    }
    monkeypatch.setattr(layout, "SPECS", small)
    site.__init__(site.lab, site.site)  # type: ignore[misc]
    site.start()
    family, how = Family.IPV4, How(Family.IPV4, in_six=False)
    for count in (1, 5, 9):
        wanted = [each for n in range(10, 10 + count) for each in web(family, "local-1", "remote", number=n)]
        site.set(*wanted)
        for number in range(10, 10 + count):
            assert asked(site, how, where=service_address(family, number)).server in ("local-1", "remote")
    assert sum(site.driver.chosen().values()) == 15
    says(site.driver, site.tables)
    assert site.restart().operations == 0


def test_pins_are_made_again_for_what_is_held(site: SocketSite) -> None:
    """A driver that still runs has its maps: nothing in them is lost with their names."""
    site.set(*web(Family.IPV4, "local-1"))
    with connect(site, How(Family.IPV4, in_six=False)) as stream:
        line(stream)
        maps = map_ids(site)
        for name in ("members", "connected", "link_connect4"):
            (site.site.directory / name).unlink()
        assert site.driver.resync(site.tables).operations == 1
        assert map_ids(site) == maps
        assert {path.name for path in site.site.directory.iterdir()} >= set(installation.PINS)
        assert stream.getpeername() == (service_address(Family.IPV4), 80)
        assert sum(site.driver.chosen().values()) == 1
        assert site.restart().operations == 0


def test_removal_leaves_nothing_and_connections_go_on(site: SocketSite) -> None:
    family, how = Family.IPV4, How(Family.IPV4, in_six=False)
    site.set(*web(family, "local-1"))
    with connect(site, how) as stream:
        line(stream)
        assert installation.remove(site.site.directory)
        assert not installation.remove(site.site.directory)
        assert not [path for path in site.site.directory.iterdir() if not path.name.endswith(".debug")]
        stream.sendall(b"x")
        assert stream.recv(1) == b"x"
        assert stream.getpeername() == (PLANS[family].pod(5), PORT)
    assert asked(site, how).server == "local-1"  # by nftables
    assert sum(site.driver.chosen().values()) == 1


def test_what_cannot_be_is_refused_by_name_and_with_what_works() -> None:
    """Here for want of rights, as a kernel without the feature would."""
    script = "from podlane.kernel.bpf import installation; installation.require()"
    caps = "-sys_admin,-bpf,-perfmon,-net_admin"
    command = ["setpriv", f"--bounding-set={caps}", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "services.mode=socket: this kernel refuses (create BPF map" in done.stderr
    assert "services.mode=nftables works without" in done.stderr


# --- maps and tables ------------------------------------------------------------------------------


def wanted(desired: Any) -> dict[Any, Any]:
    """(address or family, protocol, port) -> endpoints and timeout, as the tables say; only what is held."""
    found = {}
    for table in (Table.FRONTENDS, Table.NODE_PORTS):
        for key, row in desired[table].items():
            at = socket_lb.at_socket(key.protocol, row, desired[Table.BACKENDS])
            if at.list is not None:
                place = key.family if isinstance(key, NodePortKey) else key.address
                row = desired[Table.BACKENDS][at.list]
                found[place, key.protocol, key.port] = Counter(row.backends), row.affinity_timeout_s
    return found


def read(driver: SocketDriver) -> tuple[dict[Any, Any], set[Any]]:
    """The same from the kernel's maps, and the node's addresses; members are checked on the way."""
    maps = {name: driver._installed.read(name) for name in layout.DESIRED}
    lists = {}
    for key, head in maps[layout.LISTS].items():
        count, timeout_s = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
        ends = [maps[layout.BACKENDS].pop(key + i.to_bytes(8, "little")) for i in range(count)]
        for end in set(ends):
            del maps[layout.MEMBERS][key + end + bytes(4)]
        lists[key] = Counter(layout.unpack_end(each) for each in ends), timeout_s
    assert maps[layout.BACKENDS] == maps[layout.MEMBERS] == {}
    found: dict[Any, Any] = {}
    protocols = {6: Protocol.TCP, 17: Protocol.UDP}
    for key, number in maps[layout.FRONTENDS].items():
        where = layout.unpack_end(key[:18] + bytes(2))
        found[where.address, protocols[key[18]], where.port] = lists[number]
    for key, number in maps[layout.NODE_PORTS].items():
        family = {4: Family.IPV4, 6: Family.IPV6}[key[0]]
        found[family, protocols[key[1]], int.from_bytes(key[2:], "big")] = lists[number]
    return found, {layout.unpack_end(key + bytes(4)).address for key in maps[layout.NODE_ADDRESSES]}


def says(driver: SocketDriver, desired: Any) -> None:
    found, addresses = read(driver)
    assert found == wanted(desired)
    rows = (row for row in desired[Table.SETS] if row.set is SetName.NODE_PORT_IPS)
    assert addresses == {row.value.network_address for row in rows if row.value.num_addresses == 1}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(tables(), min_size=1, max_size=4), again=st.booleans())
def test_maps_say_the_tables_after_any_history(site: SocketSite, history: list[Tables], again: bool) -> None:
    driver = site.driver
    driver.resync(EMPTY)
    last = EMPTY
    for desired in history:
        changes = {t: delta(desired[t], last[t]) for t in EMPTY}
        assert driver.apply({t: d for t, d in changes.items() if d}).failures == ()
        says(driver, desired)
        last = desired
    # Fresh equals incremental: what a start finds is what it wants.
    assert driver.resync(last).operations == 0
    says(driver, last)
    if again:
        says_nothing = driver.resync(EMPTY)
        assert says_nothing.failures == ()
        says(driver, EMPTY)


def test_a_cgroup_that_is_another_one_is_attached_to(site: SocketSite) -> None:
    site.set(*web(Family.IPV4, "local-1"))
    how = How(Family.IPV4, in_six=False)
    other = site.site.cgroup.with_name(site.site.cgroup.name + "-b")
    other.mkdir()
    try:
        site.site = site.site._replace(cgroup=other)
        assert site.restart().operations == 11
        with cgroups.joined(other):
            assert site.lab.ask("client", service_address(Family.IPV4)).server == "local-1"
        assert sum(site.driver.chosen().values()) == 1
        site.site = site.site._replace(cgroup=other.with_name(f"podlane-test-{os.getpid()}"))
        site.restart()
        assert asked(site, how).server == "local-1"
    finally:
        other.rmdir()


def test_backends_are_octets_in_both_families() -> None:
    for text in ("10.1.2.3", "fd00::7", "::fffe:a01:203"):
        backend = Backend(address(text), 8080)
        assert layout.unpack_end(layout.end(backend)) == backend
