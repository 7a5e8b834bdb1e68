"""rtnetlink messages against bytes written by hand from the kernel's headers, and there and back."""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podlane.kernel.netlink import Message
from podlane.kernel.rtnl import addresses, links, neighbours, routes
from podlane.kernel.rtnl.links import Vxlan
from podlane.kernel.rtnl.routes import KernelRoute, RouteKind
from podlane.model.addresses import Family

pytestmark = pytest.mark.skipif(sys.byteorder != "little", reason="the golden bytes are little-endian")


def hexed(text: str) -> bytes:
    return bytes.fromhex(text.replace("\n", " "))


def seen(request) -> Message:
    """A request as the kernel would show it: the same message without the flags of a request."""
    return Message(request.type, 0, 1, request.body)


def test_a_veth_whose_peer_is_born_elsewhere():
    (request,) = links.create_veth(
        "pl1",
        "eth0",
        peer_netns=9,
        mac="02:00:00:00:00:01",
        peer_mac="02:00:00:00:00:02",
        mtu_bytes=1450,
        up=True,
    )
    assert (request.type, request.flags) == (16, 0x600)
    assert request.body == hexed(
        """
        00 00 0000 00000000 01000000 01000000
        0800 0300 706c3100
        0a00 0100 020000000001 0000
        0800 0400 aa050000
        0800 1f00 01000000  0800 2000 01000000
        5c00 1280
          0800 0100 76657468
          5000 0200
            4c00 0180
              00 00 0000 00000000 00000000 00000000
              0900 0300 6574683000 000000
              0a00 0100 020000000002 0000
              0800 0400 aa050000
              0800 1f00 01000000  0800 2000 01000000
              0800 1c00 09000000
        """
    )


def test_a_link_without_its_own_ipv6_address_is_told_so_before_it_goes_up():
    create, mode, up = links.create_veth("pl1", "eth0", up=True, link_local=False)
    assert create.body[8:16] == bytes(8)
    assert mode.body.endswith(hexed("1000 1a80 0c00 0a80 0500 0800 01000000"))
    assert up.body[8:16] == hexed("01000000 01000000")


@pytest.mark.parametrize("local", ["172.30.1.11", "fd00:172:30::1:b"])
def test_a_vxlan_device_there_and_back(local):
    vxlan = Vxlan(85, 8472, 3, ip_address(local))
    create, _ = links.create_vxlan("plvxlan", vxlan, mac="02:00:00:00:00:01", mtu_bytes=1450)
    link = links.unpack(seen(create))
    assert (link.name, link.kind, link.mac, link.mtu_bytes) == ("plvxlan", "vxlan", "02:00:00:00:00:01", 1450)
    assert link.vxlan == vxlan


def test_the_vxlan_port_is_in_network_order_and_learning_is_off():
    create, _ = links.create_vxlan("v", Vxlan(85, 8472, 0, None))
    assert hexed("0500 0700 00000000") in create.body
    assert hexed("0600 0f00 2118 0000") in create.body


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-"])
def test_names_the_kernel_refuses_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="is not a link name"):
        links.get(name)


def test_the_default_group_is_never_deleted():
    with pytest.raises(ValueError, match="group 0"):
        links.delete_group(0)


def test_an_ipv4_route_by_way_of_a_next_hop():
    route = KernelRoute(
        ip_network("10.244.2.0/24"), ip_address("10.244.2.0"), 5, ip_address("172.30.1.11"), True, 1400
    )
    request = routes.add(route)
    assert (request.type, request.flags) == (24, 0x600)
    assert request.body == hexed(
        """
        02 18 00 00 fe 55 00 01 04000000
        0800 0f00 fe000000
        0800 0100 0af40200
        0800 0400 05000000
        0800 0500 0af40200
        0800 0700 ac1e010b
        0c00 0880 0800 0200 78050000
        """
    )


def test_an_ipv6_route_onto_a_link():
    request = routes.add(KernelRoute(ip_network("fd00::5/128"), None, 5), replace=True)
    assert request.flags == 0x500
    assert request.body == hexed(
        """
        0a 80 00 00 fe 55 00 01 00000000
        0800 0f00 fe000000
        1400 0100 fd000000000000000000000000000005
        0800 0400 05000000
        """
    )


def test_an_ipv4_route_onto_a_link_has_link_scope_and_is_deleted_at_any_scope():
    route = KernelRoute(ip_network("10.244.1.5/32"), None, 5)
    assert routes.add(route).body[6] == 253
    assert routes.delete(route).body[6] == 255


@pytest.mark.parametrize(
    "route",
    [
        KernelRoute(
            ip_network("10.244.2.0/24"), ip_address("10.244.2.0"), 5, ip_address("172.30.1.11"), True, 1400
        ),
        KernelRoute(ip_network("fd00:2::/64"), ip_address("fd00:2::1"), 5, ip_address("fd00::b"), True, 1280),
        KernelRoute(ip_network("0.0.0.0/0"), ip_address("10.0.0.1"), 2, metric=7, protocol=4),
        KernelRoute(ip_network("::/0"), ip_address("fe80::1"), 2, metric=7, protocol=4),
        KernelRoute(ip_network("10.0.0.0/8"), None, 0, kind=RouteKind.BLACKHOLE),
        KernelRoute(ip_network("fd00::/8"), None, 0, kind=RouteKind.UNREACHABLE, table=1000),
    ],
    ids=str,
)
def test_routes_there_and_back(route):
    assert routes.unpack(seen(routes.add(route))) == route


def test_the_default_metric_of_ipv6_is_no_metric():
    body = routes.add(KernelRoute(ip_network("fd00::/64"), None, 5, metric=1024)).body
    assert routes.unpack(Message(24, 0, 1, body)).metric == 0


@pytest.mark.parametrize(
    ("address", "flags"), [("10.0.0.1/24", 0x200), ("fd00::1/128", 0x202)], ids=["IPv4", "IPv6"]
)
def test_addresses_there_and_back(address, flags):
    request = addresses.add(3, ip_interface(address), noprefixroute=True)
    found = addresses.unpack(seen(request))
    assert (found.link, found.address, found.flags) == (3, ip_interface(address), flags)


def test_a_permanent_neighbour():
    request = neighbours.set_neighbour(4, ip_address("10.244.1.5"), "02:00:00:00:00:01")
    assert (request.type, request.flags) == (28, 0x500)
    assert request.body == hexed(
        "02 000000 04000000 8000 00 00   0800 0100 0af40105   0a00 0200 020000000001 0000"
    )


def test_a_forwarding_entry_replaces_but_a_group_address_collects():
    one = neighbours.set_fdb(4, "02:00:00:00:00:01", ip_address("172.30.1.12"))
    assert (one.type, one.flags) == (28, 0x500)
    assert one.body == hexed(
        "07 000000 04000000 8000 02 00   0a00 0200 020000000001 0000   0800 0100 ac1e010c"
    )
    for mac in ("00:00:00:00:00:00", "33:33:00:00:00:01"):
        assert neighbours.set_fdb(4, mac, ip_address("172.30.1.12")).flags == 0xC00


@pytest.mark.parametrize("remote", ["172.30.1.12", "fd00::12"])
def test_forwarding_entries_and_neighbours_there_and_back(remote):
    where = ip_address(remote)
    entry = neighbours.unpack_fdb(seen(neighbours.set_fdb(4, "02:00:00:00:00:01", where)))
    assert entry == (4, "02:00:00:00:00:01", where, True)
    neighbour = neighbours.unpack_neighbour(seen(neighbours.set_neighbour(4, where, "02:00:00:00:00:01")))
    assert neighbour == (4, where, "02:00:00:00:00:01", True)


@pytest.mark.parametrize("mac", ["", "02:00", "02:00:00:00:00:00:01", "zz:00:00:00:00:00"])
def test_what_is_no_mac_address_is_refused(mac):
    with pytest.raises(ValueError):  # noqa: PT011
        neighbours.set_neighbour(4, ip_address("10.0.0.1"), mac)


def test_dumps_ask_for_our_routes_alone():
    request = routes.get_all(Family.IPV6, protocol=85, table=254)
    assert request.body == hexed("0a 00 00 00 fe 55 00 00 00000000  0800 0f00 fe000000")
