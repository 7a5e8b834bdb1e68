"""The rtnetlink driver: the kernel's dump equals the tables, and nothing foreign is touched."""

from __future__ import annotations

import random
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec
import pytest

from podlane.compile.tables import FdbEntry, Neighbour, Route, Table, VxlanLink
from podlane.delta import delta
from podlane.errors import KernelNotFoundError
from podlane.kernel import netns
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.driver import TABLES, RtnlDriver
from podlane.kernel.rtnl.fake import FakeRtnlDriver
from tests.netns import packets

UNDERLAY = {1: "172.30.1.11", 2: "172.30.1.12"}, {1: "fd00:172:30::1:b", 2: "fd00:172:30::1:c"}
POD = "pl0123456789"


def mac(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def tunnel(node: int = 1, outer: int = 0, **changes: Any) -> VxlanLink:
    row = VxlanLink(
        name="plvxlan",
        vni=85,
        port=8472,
        underlay="eth0",
        local=ip_address(UNDERLAY[outer][node]),
        mac=mac(node),
        mtu_bytes=1400,
        addresses=(ip_network(f"10.244.{node}.0/32"), ip_network(f"fd00:10:244:{node}::1/128")),
    )
    return msgspec.structs.replace(row, **changes)


def peer(node: int, me: int = 1, outer: int = 0) -> dict[Table, dict[Any, Any]]:
    """Rows for the pods of a remote node."""
    ends = [ip_address(f"10.244.{node}.0"), ip_address(f"fd00:10:244:{node}::1")]
    pods = [ip_network(f"10.244.{node}.0/24"), ip_network(f"fd00:10:244:{node}::/64")]
    remote = UNDERLAY[outer].get(node) or ("172.30.9.9", "fd00::9")[outer]
    routes = [
        Route(prefix, end, "plvxlan", ip_address(UNDERLAY[family][me]), onlink=True)
        for family, (prefix, end) in enumerate(zip(pods, ends, strict=True))
    ]
    return {
        Table.NEIGHBOURS: {("plvxlan", end): Neighbour("plvxlan", end, mac(node)) for end in ends},
        Table.FDB: {("plvxlan", mac(node)): FdbEntry("plvxlan", mac(node), ip_address(remote))},
        Table.ROUTES: {route.destination: route for route in routes},
    }


def pod(number: int, device: str = POD) -> dict[Table, dict[Any, Any]]:
    held = [ip_address(f"10.244.1.{number}"), ip_address(f"fd00:10:244:1::{number:x}")]
    return {
        Table.NEIGHBOURS: {(device, a): Neighbour(device, a, mac(number)) for a in held},
        Table.ROUTES: {ip_network(a): Route(ip_network(a), None, device) for a in held},
    }


def joined(*parts: dict[Table, dict[Any, Any]]) -> dict[Table, dict[Any, Any]]:
    rows: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}
    for part in parts:
        for table, some in part.items():
            rows[table].update(some)
    return rows


def device(row: VxlanLink) -> dict[Table, dict[Any, Any]]:
    return {Table.LINKS: {row.name: row}}


def changes(before: dict[Table, Any], after: dict[Table, Any]) -> dict[Table, Any]:
    return {table: delta(after[table], before[table]) for table in TABLES}


@pytest.fixture
def namespace(namespaces):
    """A node with an uplink and one pod's link."""
    fd = namespaces()
    with Rtnl(fd) as rt:
        rt.set_up("lo")
        rt.create_bridge("eth0", up=True, link_local=False)
        for family in UNDERLAY:
            rt.add_address("eth0", ip_interface(f"{family[1]}/{'24' if '.' in family[1] else '112'}"))
        rt.create_veth(POD, "peer", up=True, peer_up=True, link_local=False)
    return fd


@pytest.fixture
def rt(namespace):
    with Rtnl(namespace) as made:
        yield made


@pytest.fixture
def driver(namespace):
    made = RtnlDriver(namespace)
    yield made
    made.close()


WHOLE = joined(device(tunnel()), peer(2), peer(3), pod(5), pod(6))


def test_an_empty_node_becomes_what_the_tables_say(driver):
    report = driver.resync(WHOLE)
    assert (report.failures, driver.actual()) == ((), WHOLE)


def test_what_is_right_is_not_touched(driver, namespace):
    driver.resync(WHOLE)
    with Netlink(netns_fd=namespace, groups=[1, 3, 7, 11]) as listener:
        report = driver.resync(WHOLE)
        assert (report.operations, report.failures) == (0, ())
        assert listener._poll("events") is None


@pytest.mark.parametrize("outer", [0, 1], ids=["IPv4 outside", "IPv6 outside"])
def test_either_family_carries_the_tunnel(driver, outer):
    rows = joined(device(tunnel(outer=outer)), peer(2, outer=outer))
    assert driver.resync(rows).failures == ()
    assert driver.actual() == rows


def test_one_generation_costs_its_own_changes(driver):
    driver.resync(WHOLE)
    without = joined(device(tunnel()), peer(2), pod(5), pod(6))
    report = driver.apply(changes(WHOLE, without))
    assert (report.operations, report.failures, driver.actual()) == (5, (), without)
    report = driver.apply(changes(without, WHOLE))
    assert (report.operations, report.failures, driver.actual()) == (5, (), WHOLE)


def test_changed_rows_are_replaced(driver):
    driver.resync(WHOLE)
    after = joined(WHOLE)
    for table, key, new in (
        (Table.NEIGHBOURS, ("plvxlan", ip_address("10.244.2.0")), {"mac": mac(99)}),
        (Table.NEIGHBOURS, (POD, ip_address("fd00:10:244:1::5")), {"mac": mac(99)}),
        (Table.FDB, ("plvxlan", mac(2)), {"remote": ip_address("172.30.1.77")}),
        (Table.ROUTES, ip_network("10.244.2.0/24"), {"mtu_bytes": 1300, "source": None}),
        (Table.ROUTES, ip_network("fd00:10:244:2::/64"), {"mtu_bytes": 1300, "source": None}),
        (Table.ROUTES, ip_network("10.244.1.5/32"), {"device": "plvxlan"}),
        (Table.ROUTES, ip_network("fd00:10:244:1::5/128"), {"device": "plvxlan"}),
    ):
        after[table] = after[table] | {key: msgspec.structs.replace(after[table][key], **new)}
    report = driver.apply(changes(WHOLE, after))
    assert (report.operations, report.failures, driver.actual()) == (7, (), after)


DAMAGES = {
    "the tunnel deleted": lambda rt: rt.delete_link("plvxlan"),
    "the tunnel down": lambda rt: rt.set_down("plvxlan"),
    "another MAC": lambda rt: rt.set_mac("plvxlan", mac(77)),
    "another MTU": lambda rt: rt.set_mtu("plvxlan", 1300),
    "an address deleted": lambda rt: rt.delete_address("plvxlan", ip_interface("10.244.1.0/32")),
    "an address added": lambda rt: rt.add_address("plvxlan", ip_interface("10.99.0.1/32")),
    "the uplink's address deleted": lambda rt: (
        rt.delete_address("eth0", ip_interface("172.30.1.11/24")),
        rt.add_address("eth0", ip_interface("172.30.1.11/24")),
    ),
    "a neighbour deleted": lambda rt: rt.delete_neighbour("plvxlan", ip_address("fd00:10:244:2::1")),
    "a neighbour changed": lambda rt: rt.set_neighbour("plvxlan", ip_address("10.244.2.0"), mac(77)),
    "a neighbour added": lambda rt: rt.set_neighbour(POD, ip_address("10.99.0.1"), mac(77)),
    "a forwarding entry changed": lambda rt: rt.set_fdb("plvxlan", mac(2), ip_address("172.30.1.99")),
    "a forwarding entry added": lambda rt: rt.set_fdb("plvxlan", mac(77), ip_address("172.30.1.99")),
    "a route deleted": lambda rt: rt.delete_route(ip_network("10.244.2.0/24")),
    "a route changed": lambda rt: rt.add_route(ip_network("10.244.2.0/24"), device=POD, replace=True),
    "a route added": lambda rt: rt.add_route(ip_network("10.99.0.0/16"), device=POD),
    "a route that refuses": lambda rt: rt.add_route(ip_network("10.98.0.0/16"), kind=6),
    "a route of another metric": lambda rt: rt.add_route(ip_network("10.244.2.0/24"), device=POD, metric=5),
    "a second IPv6 route of another metric": lambda rt: rt.add_route(
        ip_network("fd00:10:244:2::/64"), device=POD, metric=5
    ),
    "a tunnel of ours that nobody wants": lambda rt: rt.create_vxlan(
        "plold", vni=9, port=8472, underlay="eth0", local=ip_address("172.30.1.11")
    ),
    "another kind of link in the tunnel's place": lambda rt: (
        rt.delete_link("plvxlan"),
        rt.create_bridge("plvxlan", up=True),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_repaired(driver, rt, damage):
    driver.resync(WHOLE)
    DAMAGES[damage](rt)
    report = driver.resync(WHOLE)
    assert report.failures == ()
    assert report.operations > 0
    assert driver.actual() == WHOLE
    assert len(rt.routes(protocol=85)) == len(WHOLE[Table.ROUTES])
    assert driver.resync(WHOLE).operations == 0


PARAMETERS = {
    "vni": 86,
    "port": 4789,
    "underlay": "eth1",
    "local": ip_address("172.30.1.12"),
    "local of the other family": ip_address("fd00:172:30::1:b"),
}


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_tunnel_with_other_parameters_is_made_anew_and_everything_on_it_comes_back(driver, rt, parameter):
    rt.create_bridge("eth1", up=True)
    driver.resync(WHOLE)
    index = rt.link_index("plvxlan")
    row = tunnel(**{parameter.split()[0]: PARAMETERS[parameter]})
    after = joined(WHOLE, device(row))
    if parameter == "local of the other family":
        after = joined(device(row), peer(2, outer=1), peer(3, outer=1), pod(5), pod(6))
    report = driver.apply(changes(WHOLE, after))
    assert (report.failures, driver.actual()) == ((), after)
    assert rt.link_index("plvxlan") != index


def test_the_links_of_pods_are_never_removed(driver, rt):
    driver.resync(WHOLE)
    driver.resync(joined())
    assert driver.actual() == joined()
    assert rt.link(POD).up
    assert rt.find_link("plvxlan") is None


def test_what_is_not_ours_is_never_touched(driver, rt):
    rt.create_vxlan("flannel.1", vni=1, port=8473, underlay="eth0", local=ip_address("172.30.1.11"), up=True)
    rt.set_neighbour("flannel.1", ip_address("10.50.0.0"), mac(50))
    rt.set_fdb("flannel.1", mac(50), ip_address("172.30.1.50"))
    rt.set_neighbour("eth0", ip_address("172.30.1.1"), mac(51))
    rt.add_route(ip_network("10.50.0.0/16"), device="flannel.1", protocol=4)
    rt.add_route(ip_network("10.51.0.0/16"), device="eth0", table=1000)

    def foreign() -> list[Any]:
        permanent = {entry for entry in rt.neighbours() if entry.permanent}
        return [rt.links(), permanent, rt.fdb("flannel.1"), rt.routes(protocol=4), rt.routes(table=1000)]

    before = foreign()
    driver.resync(WHOLE)
    driver.resync(joined())
    assert foreign() == before


@pytest.mark.parametrize("prefix", ["10.244.2.0/24", "fd00:10:244:2::/64"])
def test_a_foreign_route_in_the_way_is_left_and_told(driver, rt, prefix):
    rt.add_route(ip_network(prefix), device="eth0", protocol=4)
    report = driver.resync(WHOLE)
    (failure,) = report.failures
    assert (failure.table, failure.key) == (Table.ROUTES, ip_network(prefix))
    # An IPv6 next hop that the other route leads elsewhere is refused by the kernel before that.
    assert "not podlane's" in str(failure.error) or "device mismatch" in str(failure.error)
    assert [r.link for r in rt.routes(protocol=4)] == [rt.link_index("eth0")]
    rt.delete_route(ip_network(prefix), protocol=4)
    assert (driver.resync(WHOLE).failures, driver.actual()) == ((), WHOLE)


def test_an_added_row_that_is_there_already_is_no_failure(driver):
    driver.resync(WHOLE)
    report = driver.apply(changes(joined(device(tunnel())), WHOLE) | {Table.LINKS: delta({}, {})})
    assert (report.failures, driver.actual()) == ((), WHOLE)


def test_a_row_on_a_link_that_is_not_there_fails_alone_and_its_removal_does_not(driver, rt):
    rows = joined(WHOLE, pod(9, "plabsent"))
    driver.resync(WHOLE)
    report = driver.apply(changes(WHOLE, rows))
    assert {failure.key for failure in report.failures} == {
        *pod(9, "plabsent")[Table.NEIGHBOURS],
        *pod(9, "plabsent")[Table.ROUTES],
    }
    assert all(isinstance(f.error, KernelNotFoundError) for f in report.failures)
    assert "there is no link plabsent" in str(report.failures[0].error)
    assert driver.actual() == WHOLE
    assert driver.apply(changes(rows, WHOLE)).failures == ()
    # The link appears later: the same rows then succeed.
    rt.create_veth("plabsent", "p2", up=True, peer_up=True)
    assert (driver.apply(changes(WHOLE, rows)).failures, driver.actual()) == ((), rows)


def test_rows_that_went_with_their_link_are_removed_without_failure(driver, rt):
    driver.resync(WHOLE)
    rt.delete_link(POD)
    after = joined(device(tunnel()), peer(2), peer(3))
    assert (driver.apply(changes(WHOLE, after)).failures, driver.actual()) == ((), after)


def test_a_link_made_anew_under_the_same_name_gets_its_rows(driver, rt):
    driver.resync(WHOLE)
    rt.delete_link(POD)
    rt.create_veth(POD, "peer", up=True, peer_up=True, link_local=False)
    after = joined(WHOLE, pod(7))
    assert driver.apply(changes(WHOLE, after)).failures == ()
    assert driver.actual()[Table.ROUTES].keys() >= pod(7)[Table.ROUTES].keys()
    assert (driver.resync(after).failures, driver.actual()) == ((), after)


def test_a_tunnel_without_its_underlay_fails_by_name_and_comes_later(driver, rt):
    row = tunnel(underlay="eth7", local=ip_address("172.30.1.11"))
    report = driver.resync(joined(device(row), pod(5)))
    assert [(f.table, f.key) for f in report.failures] == [(Table.LINKS, "plvxlan")]
    assert "eth7" in str(report.failures[0].error)
    assert driver.actual() == joined(pod(5))
    rt.create_bridge("eth7", up=True)
    assert driver.resync(joined(device(row), pod(5))).failures == ()


def test_a_mac_address_that_is_none_fails_alone(driver):
    bad = {Table.NEIGHBOURS: {(POD, ip_address("10.244.1.9")): Neighbour(POD, ip_address("10.244.1.9"), "")}}
    report = driver.resync(joined(WHOLE, bad))
    assert [f.key for f in report.failures] == [(POD, ip_address("10.244.1.9"))]
    assert driver.actual() == WHOLE


@pytest.mark.parametrize("seed", range(6))
def test_any_walk_of_generations_ends_where_a_fresh_start_does(namespaces, namespace, seed):
    """The real driver, and the fake with it."""
    chance = random.Random(seed)
    parts = [device(tunnel()), *(peer(n) for n in (2, 3, 4)), *(pod(n) for n in (5, 6, 7))]
    driver, fake = RtnlDriver(namespace), FakeRtnlDriver(["eth0", POD])
    now = joined()
    driver.resync(now)
    for _ in range(15):
        chosen = [part for part in parts[1:] if chance.random() < 0.6]
        row = tunnel(vni=chance.choice([85, 86]), mtu_bytes=chance.choice([1400, 1300]))
        then = joined(device(row), *chosen)
        step = changes(now, then)
        assert driver.apply(step).failures == ()
        assert fake.apply(step).failures == ()
        now = then
        assert driver.actual() == now == fake.actual()
    driver.close()


@pytest.fixture
def nodes(namespaces):
    """Two nodes on one wire, forwarding, each with one pod namespace behind a routed link."""
    first, second = namespaces(), namespaces()
    for fd in (first, second):
        netns.write_sysctl(fd, "net/ipv6/conf/default/accept_dad", 0)
    with Rtnl(first) as a, Rtnl(second) as b:
        a.create_veth("eth0", "eth0", peer_netns=second, mtu_bytes=1500, up=True, peer_up=True)
        for number, fd, side in ((1, first, a), (2, second, b)):
            side.set_up("lo")
            side.add_address("eth0", ip_interface(f"{UNDERLAY[0][number]}/24"))
            side.add_address("eth0", ip_interface(f"{UNDERLAY[1][number]}/112"))
            netns.write_sysctl(fd, "net/ipv4/ip_forward", 1)
            netns.write_sysctl(fd, "net/ipv6/conf/all/forwarding", 1)
    return {1: first, 2: second}


@pytest.mark.parametrize("outer", [0, 1], ids=["IPv4 outside", "IPv6 outside"])
def test_packets_of_both_families_cross_the_tunnel_up_to_its_mtu(nodes, outer):
    mtu_bytes = 1500 - (50, 70)[outer]
    drivers = {number: RtnlDriver(fd) for number, fd in nodes.items()}
    try:
        for number, other in ((1, 2), (2, 1)):
            rows = joined(device(tunnel(number, outer, mtu_bytes=mtu_bytes)), peer(other, number, outer))
            assert drivers[number].resync(rows).failures == ()
        ends = {n: [ip_address(f"10.244.{n}.0"), ip_address(f"fd00:10:244:{n}::1")] for n in nodes}
        for family in (0, 1):
            source = ip_address(UNDERLAY[family][1])
            for exchange in (packets.udp, packets.tcp):
                assert exchange(nodes[1], nodes[2], ends[2][family]) == source
            # The largest datagram that needs no fragment: 20 or 40 bytes of IP, 8 of UDP.
            largest = mtu_bytes - (20, 40)[family] - 8
            assert packets.udp(nodes[1], nodes[2], ends[2][family], largest) == source
        with Rtnl(nodes[1]) as rt:
            assert rt.link("plvxlan").mtu_bytes == mtu_bytes
    finally:
        for driver in drivers.values():
            driver.close()
