"""Rtnl and Netlink against the kernel: what is written is what is read, and refusals have words."""

from __future__ import annotations

import errno
import struct
import threading
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podlane.errors import KernelError, KernelExistsError, KernelNotFoundError
from podlane.kernel import netlink as nl
from podlane.kernel import netns
from podlane.kernel.netlink import NETLINK_NETFILTER, Request
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import KernelRoute, RouteKind, Rtnl, Vxlan, addresses, links, routes
from podlane.model.addresses import Family
from tests.netns import packets

MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


@pytest.fixture
def rt(namespaces):
    with Rtnl(namespaces()) as made:
        yield made


def test_a_peer_is_born_in_its_namespace_under_its_name_and_packets_pass(namespaces):
    here, there = namespaces(), namespaces()
    with Rtnl(here) as a, Rtnl(there) as b:
        a.create_veth(
            "a", "eth0", peer_netns=there, mac=MAC_A, peer_mac=MAC_B, mtu_bytes=1400, up=True, peer_up=True
        )
        assert (a.link("a").mac, b.link("eth0").mac, b.link("eth0").mtu_bytes) == (MAC_A, MAC_B, 1400)
        assert (a.link("a").peer, b.link("eth0").peer) == (b.link_index("eth0"), a.link_index("a"))
        for number, side, device in ((1, a, "a"), (2, b, "eth0")):
            side.add_address(device, ip_interface(f"10.0.0.{number}/24"))
            side.add_address(device, ip_interface(f"fd00::{number}/64"))
    # Usable at once: no duplicate address detection is waited for.
    assert packets.udp(here, there, ip_address("fd00::2")) == ip_address("fd00::1")
    assert packets.tcp(here, there, ip_address("10.0.0.2")) == ip_address("10.0.0.1")


def test_the_callers_namespace_is_left_alone(namespaces):
    with Rtnl() as home, Rtnl(namespaces()) as rt:
        rt.create_veth("podlane-try", "b")
        assert home.find_link("podlane-try") is None
        assert rt.find_link("podlane-try") is not None


def test_bridge_ports_and_changes(rt):
    rt.create_bridge("br0", mac=MAC_A, up=True)
    rt.create_veth("a", "b", master="br0", group=7)
    assert (rt.link("a").master, rt.link("a").group) == (rt.link_index("br0"), 7)
    rt.set_master("a", 0)
    rt.set_mtu("a", 1300)
    rt.set_mac("a", MAC_B)
    rt.set_up("a")
    rt.set_group("a", 0)
    rt.rename("a", "c")
    link = rt.link("c")
    assert (link.master, link.mtu_bytes, link.mac, link.up, link.group) == (0, 1300, MAC_B, True, 0)
    rt.set_down("c")
    assert (rt.link("c").up, rt.link("br0").mac, rt.link("br0").kind) == (False, MAC_A, "bridge")


@pytest.mark.parametrize("local", ["172.30.1.11", "fd00:172:30::1:b", None])
def test_a_vxlan_device_reads_as_it_was_made(rt, local):
    rt.create_bridge("eth0", up=True)
    where = ip_address(local) if local else None
    rt.create_vxlan("v", vni=85, port=8472, underlay="eth0", local=where, mac=MAC_A, mtu_bytes=1400, up=True)
    link = rt.link("v")
    assert link.vxlan == Vxlan(85, 8472, rt.link_index("eth0"), where)
    assert (link.mac, link.mtu_bytes, link.up) == (MAC_A, 1400, True)
    assert rt.addresses("v") == [], "no IPv6 address of its own"


def test_many_links_go_in_one_go_and_only_they(rt):
    for number in range(5):
        rt.create_veth(f"a{number}", f"b{number}")
    rt.delete_links(["a0", "a1", "b1", "b2", "never"])
    assert sorted(link.name for link in rt.links()) == ["a3", "a4", "b3", "b4", "lo"]
    rt.delete_links([])
    rt.delete_links(["a3"])
    assert sorted(link.name for link in rt.links()) == ["a4", "b4", "lo"]


def test_addresses_come_and_go(rt):
    rt.create_bridge("br0", up=True, link_local=False)
    held = [ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")]
    for address in held:
        rt.add_address("br0", address, noprefixroute=True)
    assert [entry.address for entry in rt.addresses("br0")] == held
    assert rt.routes(table=254) == [], "noprefixroute"
    for address in held:
        rt.delete_address("br0", address)
    assert rt.addresses("br0") == []


ROUTES = [
    KernelRoute(ip_network("10.1.0.0/16"), ip_address("10.9.0.2"), 2, ip_address("10.0.0.1"), True, 1300),
    KernelRoute(ip_network("fd01::/64"), ip_address("fd09::2"), 2, ip_address("fd00::1"), True, 1300),
    KernelRoute(ip_network("10.2.0.3/32"), None, 2),
    KernelRoute(ip_network("fd02::3/128"), None, 2),
    KernelRoute(ip_network("0.0.0.0/0"), ip_address("10.0.0.254"), 2, metric=5),
    KernelRoute(ip_network("::/0"), ip_address("fd00::fe"), 2, metric=5),
    KernelRoute(ip_network("10.3.0.0/16"), None, 0, kind=RouteKind.BLACKHOLE),
    KernelRoute(ip_network("fd03::/64"), None, 0, kind=RouteKind.UNREACHABLE),
]


def arguments(route: KernelRoute) -> dict:
    named = route._asdict()
    named["device"] = named.pop("link")
    return named


@pytest.fixture
def routed(rt):
    rt.create_bridge("br0", up=True, link_local=False)
    rt.add_address("br0", ip_interface("10.0.0.1/24"))
    rt.add_address("br0", ip_interface("fd00::1/64"))
    assert rt.link_index("br0") == 2
    return rt


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_route_reads_as_it_was_written_is_replaced_and_goes(routed, route):
    foreign = routed.routes(table=254)
    routed.add_route(**arguments(route))
    assert routed.routes(protocol=85) == [route]
    with pytest.raises(KernelExistsError):
        routed.add_route(**arguments(route))
    if route.kind == RouteKind.UNICAST:
        changed = route._replace(mtu_bytes=1280)
        routed.add_route(**arguments(changed), replace=True)
        assert routed.routes(protocol=85) == [changed]
    routed.do(routes.delete(route))
    assert routed.routes(table=254) == foreign


def test_routes_are_chosen_by_family_protocol_and_table(routed):
    for route in ROUTES[:4]:
        routed.add_route(**arguments(route))
    routed.add_route(ip_network("10.7.0.0/16"), device="br0", table=1000)
    routed.add_route(ip_network("10.8.0.0/16"), device="br0", protocol=4)
    assert set(routed.routes(protocol=85, table=254)) == set(ROUTES[:4])
    assert set(routed.routes(Family.IPV6, protocol=85)) == {ROUTES[1], ROUTES[3]}
    assert [r.destination for r in routed.routes(table=1000)] == [ip_network("10.7.0.0/16")]


def test_a_namespace_without_any_route_has_no_routes(rt):
    assert rt.routes(protocol=85, table=254) == []


def test_another_protocols_route_is_not_deleted_as_ours(routed):
    routed.add_route(ip_network("10.8.0.0/16"), device="br0", protocol=4)
    with pytest.raises(KernelNotFoundError):
        routed.delete_route(ip_network("10.8.0.0/16"))
    assert len(routed.routes(protocol=4)) == 1


def test_neighbours_and_forwarding_entries(routed):
    v4, v6 = ip_address("10.0.0.9"), ip_address("fd00::9")
    for address in (v4, v6):
        routed.set_neighbour("br0", address, MAC_A)
        routed.set_neighbour("br0", address, MAC_B)
    assert [(n.address, n.mac, n.permanent) for n in routed.neighbours()] == [
        (v4, MAC_B, True),
        (v6, MAC_B, True),
    ]
    routed.delete_neighbour("br0", v4)
    assert [n.address for n in routed.neighbours()] == [v6]
    routed.create_vxlan("v", vni=85, port=8472, underlay="br0", local=ip_address("10.0.0.1"), up=True)
    flood, hosts = "00:00:00:00:00:00", [ip_address("10.0.0.2"), ip_address("10.0.0.3")]
    for remote in hosts:
        routed.set_fdb("v", MAC_A, remote)
        routed.set_fdb("v", flood, remote)
    held = [(entry.mac, entry.remote) for entry in routed.fdb("v")]
    assert sorted(held) == [(flood, hosts[0]), (flood, hosts[1]), (MAC_A, hosts[1])]
    routed.delete_fdb("v", flood, hosts[0])
    routed.delete_fdb("v", MAC_A, hosts[1])
    assert [(entry.mac, entry.remote) for entry in routed.fdb("v")] == [(flood, hosts[1])]


def test_refusals_name_the_operation_and_carry_the_kernels_words(routed):
    with pytest.raises(KernelError, match=r"add route 10.8.0.0/16: Nexthop has invalid gateway") as caught:
        routed.add_route(ip_network("10.8.0.0/16"), via=ip_address("10.77.0.1"), device="br0")
    assert caught.value.errno == errno.ENETUNREACH


def test_what_is_not_there_is_not_found(rt):
    assert rt.find_link("never") is None
    for missing in (lambda: rt.link("never"), lambda: rt.delete_link("never"), lambda: rt.set_up("never")):
        with pytest.raises(KernelNotFoundError):
            missing()
    rt.delete_link("never", missing_ok=True)


def test_a_name_that_is_taken_exists_already(rt):
    rt.create_bridge("br0")
    with pytest.raises(KernelExistsError, match="add bridge br0"):
        rt.create_bridge("br0")


# --- Netlink itself ---


def test_a_batch_gives_one_verdict_each_and_goes_on_after_a_refusal(rt):
    held = [ip_interface(f"10.{n >> 8}.{n & 255}.1/32") for n in range(1500)]
    verdicts = rt.execute([addresses.add(rt.link_index("lo"), address) for address in held * 2])
    assert [error is None for error in verdicts] == [True] * 1500 + [False] * 1500
    assert all(isinstance(error, KernelExistsError) for error in verdicts[1500:])
    assert [entry.address for entry in rt.addresses("lo") if entry.address.version == 4] == held
    assert rt.execute([]) == []


def test_a_socket_stays_usable_after_refusals_and_for_several_threads(namespaces):
    with Rtnl(namespaces()) as rt:
        errors = []

        def work() -> None:
            for _ in range(50):
                try:
                    assert rt.link("lo").name == "lo"
                    assert rt.find_link("never") is None
                    assert [link.name for link in rt.links()] == ["lo"]
                except BaseException as error:
                    errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


def test_a_dump_while_addresses_come_and_go_is_whole(namespaces):
    namespace = namespaces()
    kept = [ip_interface(f"10.{n >> 8}.{n & 255}.1/32") for n in range(500)]
    with Rtnl(namespace) as rt, Rtnl(namespace) as other:
        index = rt.link_index("lo")
        rt.do(*(addresses.add(index, address) for address in kept))
        stop = threading.Event()

        def churn() -> None:
            while not stop.wait(0.005):
                other.add_address(index, ip_interface("192.0.2.1/32"))
                other.delete_address(index, ip_interface("192.0.2.1/32"))

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            for _ in range(10):
                held = [entry.address for entry in rt.addresses(index) if entry.address.version == 4]
                assert [address for address in held if address in set(kept)] == kept
        finally:
            stop.set()
            thread.join()


def _netfilter(kind: int, family: int, *attributes: bytes, flags: int = 0) -> Request:
    return Request(kind, flags, struct.pack("!BBH", family, 0, 10) + b"".join(attributes), f"message {kind}")


def test_a_netfilter_transaction_is_all_or_nothing(namespaces):
    nft, newtable, newchain, gettable = 10 << 8, 0, 3, 1
    begin, end = _netfilter(16, 0), _netfilter(17, 0)
    table = _netfilter(nft | newtable, 2, nl.attribute(1, nl.text("t")), flags=nl.NLM_F_CREATE)
    orphan = _netfilter(
        nft | newchain,
        2,
        nl.attribute(1, nl.text("none")),
        nl.attribute(3, nl.text("c")),
        flags=nl.NLM_F_CREATE,
    )
    with Netlink(NETLINK_NETFILTER, namespaces()) as netlink:
        verdicts = netlink.transaction([table, orphan], begin=begin, end=end)
        assert verdicts[0] is None
        assert isinstance(verdicts[1], KernelNotFoundError)
        assert netlink.dump(_netfilter(nft | gettable, 2)) == []
        assert netlink.transaction([table], begin=begin, end=end) == [None]
        assert len(netlink.dump(_netfilter(nft | gettable, 2))) == 1


def test_a_transaction_larger_than_the_send_buffer_passes(namespaces):
    begin, end = _netfilter(16, 0), _netfilter(17, 0)
    elements = nl.attribute(3, bytes(60_000))
    orphan = _netfilter(
        (10 << 8) | 12, 2, nl.attribute(1, nl.text("t")), nl.attribute(2, nl.text("s")), elements
    )
    with Netlink(NETLINK_NETFILTER, namespaces()) as netlink:
        verdicts = netlink.transaction([orphan] * 200, begin=begin, end=end)
        assert len(verdicts) == 200
        assert all(isinstance(error, KernelNotFoundError) for error in verdicts)


def test_groups_are_heard(namespaces):
    namespace = namespaces()
    with Netlink(netns_fd=namespace, groups=[1]) as listener, Rtnl(namespace) as rt:
        rt.create_bridge("br0")
        heard = [links.unpack(m) for m in listener.receive() if m.type == links.RTM_NEWLINK]
        assert heard[0].name == "br0"


def test_lost_notices_are_an_error_once_and_the_socket_goes_on(namespaces):
    namespace = namespaces()
    with Netlink(netns_fd=namespace, groups=[1]) as listener, Rtnl(namespace) as rt:
        listener._socket.setsockopt(1, 33, 4096)
        for number in range(50):
            rt.create_bridge(f"br{number}")
        heard, lost = 0, None
        while lost is None:
            try:
                heard += len(listener.receive())
            except KernelError as error:
                lost = error.errno
        assert lost == errno.ENOBUFS
        assert heard < 50


def test_a_namespace_that_is_none_is_refused(tmp_path):
    with (tmp_path / "file").open("w") as file, pytest.raises(KernelError, match="setns"):
        Rtnl(file.fileno())


def test_sysctls_are_those_of_the_namespace(namespaces):
    fd = namespaces()
    netns.write_sysctl(fd, "net/ipv4/ip_forward", 1)
    assert netns.read_sysctl(fd, "net/ipv4/ip_forward") == "1"
