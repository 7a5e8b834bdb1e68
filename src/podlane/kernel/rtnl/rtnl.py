"""One namespace's links, addresses, routes, neighbours and forwarding entries: the thin I/O part.

    with Rtnl(netns_fd) as rt:
        rt.create_veth("a", "eth0", peer_netns=pod_fd, mac=..., peer_mac=..., up=True, peer_up=True)
        rt.add_address("a", ip_interface("10.0.0.1/24"))
        rt.add_route(ip_network("10.1.0.0/16"), via=ip_address("10.0.0.2"), device="a", onlink=True)

A device is given by name, or by index where that is known. Every method blocks while the kernel works
and raises KernelError; `execute` runs many requests of the codec modules for the price of one call.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from podlane.errors import KernelError, KernelNotFoundError
from podlane.kernel.netlink import NETLINK_ROUTE, Message, Request
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import addresses, links, neighbours, routes
from podlane.kernel.rtnl.addresses import InterfaceAddress
from podlane.kernel.rtnl.links import Link, Vxlan
from podlane.kernel.rtnl.neighbours import KernelFdb, KernelNeighbour
from podlane.kernel.rtnl.routes import MAIN_TABLE, PROTOCOL, KernelRoute, RouteKind
from podlane.model.addresses import Address, Family, Interface, Prefix, family_of

Device: TypeAlias = str | int

# Links on their way out are put into this group, which then goes in one request.
_DOOMED = 0x706C6465

_SETTLE_PAUSE_S = 0.0002
_SETTLE_TIMEOUT_S = 10  # it takes a millisecond, or as long as others hold the rtnl lock


class Rtnl:
    """netns_fd: the namespace; None for the caller's own. Serves one thread at a time."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._netlink = Netlink(NETLINK_ROUTE, netns_fd)

    def __enter__(self) -> Rtnl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._netlink.close()

    def execute(self, requests: Sequence[Request]) -> list[KernelError | None]:
        """One verdict a request; a refusal stops no other."""
        return self._netlink.execute(requests)

    def do(self, *requests: Request) -> None:
        """Raises the first refusal, after all have been tried."""
        self._netlink.do(*requests)

    def ask(self, request: Request) -> list[Message]:
        """What the kernel answers to one request. Raises KernelError."""
        return self._netlink.ask(request)

    # --- links ---

    def link(self, name: str) -> Link:
        """Raises KernelNotFoundError."""
        return self.links_of(name)[0]

    def links_of(self, *names: str) -> list[Link]:
        """For the price of one. Raises KernelNotFoundError."""
        verdicts, found = self._netlink.exchange([links.get(name) for name in names])
        for error in verdicts:
            if error is not None:
                raise error
        return [links.unpack(answer[0]) for answer in found]

    def find_link(self, name: str) -> Link | None:
        try:
            return self.link(name)
        except KernelNotFoundError:
            return None

    def links(self) -> list[Link]:
        return [links.unpack(m) for m in self._netlink.dump(links.get_all())]

    def link_index(self, device: Device) -> int:
        """Raises KernelNotFoundError."""
        if isinstance(device, int):
            return device
        return links.unpack_index(self._netlink.ask(links.get(device))[0])

    def find_index(self, name: str) -> int:
        """0 if there is no such link."""
        try:
            return links.unpack_index(self._netlink.ask(links.get(name))[0])
        except KernelNotFoundError:
            return 0

    def has_index(self, index: int) -> bool:
        try:
            self._netlink.ask(links.get(index))
        except KernelNotFoundError:
            return False
        return True

    def create_veth(
        self,
        name: str,
        peer: str,
        *,
        peer_netns: int | None = None,
        mac: str = "",
        peer_mac: str = "",
        mtu_bytes: int = 0,
        group: int = 0,
        master: Device = 0,
        up: bool = False,
        peer_up: bool = False,
        link_local: bool = True,
    ) -> Link:
        """Makes a pair and returns our end. The peer is born in namespace descriptor peer_netns (None: here)
        under its final name.

        link_local: whether our end gets an IPv6 link-local address by itself.
        """
        requests = [
            *links.create_veth(
                name,
                peer,
                peer_netns=peer_netns,
                mac=mac,
                peer_mac=peer_mac,
                mtu_bytes=mtu_bytes,
                group=group,
                master=self.link_index(master),
                up=up,
                link_local=link_local,
            ),
            links.get(name),
        ]
        verdicts, found = self._netlink.exchange(requests)
        for error in verdicts:
            if error is not None:
                raise error
        if peer_up and peer_netns is None:
            self.set_up(peer)
        elif peer_up:
            with Rtnl(peer_netns) as there:
                there.set_up(peer)
        return links.unpack(found[-1][0])

    def create_bridge(
        self, name: str, *, mac: str = "", mtu_bytes: int = 0, up: bool = False, link_local: bool = True
    ) -> None:
        self.do(*links.create_bridge(name, mac=mac, mtu_bytes=mtu_bytes, up=up, link_local=link_local))

    def create_vxlan(
        self,
        name: str,
        *,
        vni: int,
        port: int,
        underlay: Device = 0,
        local: Address | None = None,
        learning: bool = False,
        mac: str = "",
        mtu_bytes: int = 0,
        up: bool = False,
        link_local: bool = False,
    ) -> None:
        """The family of local is that of the outer packets."""
        vxlan = Vxlan(vni, port, self.link_index(underlay), local, learning)
        self.do(*links.create_vxlan(name, vxlan, mac=mac, mtu_bytes=mtu_bytes, up=up, link_local=link_local))

    def set_up(self, device: Device) -> None:
        self._change(device, up=True)

    def set_down(self, device: Device) -> None:
        self._change(device, up=False)

    def settle_port(self, name: str) -> None:
        """Returns when the bridge uses this port.

        It does so some time after the link has a carrier: frames are dropped until then. Raises
        KernelError if that takes longer than ten seconds.
        """
        end_s = time.monotonic() + _SETTLE_TIMEOUT_S
        while not self.link(name).forwarding:
            if time.monotonic() > end_s:
                detail = f"not in {_SETTLE_TIMEOUT_S} s; are the port, its peer and the bridge up?"
                raise KernelError.of(errno.ETIMEDOUT, f"forwarding state of {name}", detail)
            time.sleep(_SETTLE_PAUSE_S)

    def set_master(self, device: Device, master: Device) -> None:
        """master 0: no longer a port."""
        self._change(device, master=self.link_index(master))

    def set_mtu(self, device: Device, mtu_bytes: int) -> None:
        self._change(device, mtu_bytes=mtu_bytes)

    def set_mac(self, device: Device, mac: str) -> None:
        self._change(device, mac=mac)

    def set_group(self, device: Device, group: int) -> None:
        self._change(device, group=group)

    def rename(self, device: Device, name: str) -> None:
        self._change(device, name=name)

    def _change(
        self,
        device: Device,
        *,
        up: bool | None = None,
        name: str = "",
        mac: str = "",
        mtu_bytes: int = 0,
        master: int | None = None,
        group: int | None = None,
    ) -> None:
        index = self.link_index(device)
        self.do(
            links.change(
                index,
                up=up,
                name=name,
                mac=mac,
                mtu_bytes=mtu_bytes,
                master=master,
                group=group,
                what=str(device),
            )
        )

    def delete_link(self, name: str, *, missing_ok: bool = False) -> None:
        try:
            self.do(links.delete(name))
        except KernelNotFoundError:
            if not missing_ok:
                raise

    def delete_links(self, names: Iterable[str]) -> None:
        """All of them in one go; those that are not there are no error."""
        self.delete_indexes([index for index in map(self.find_index, names) if index])

    def delete_indexes(self, indexes: Sequence[int]) -> None:
        """All of them in one go; those that went meanwhile are no error.

        One deletion takes some 16 ms of waiting for RCU; a group of any size takes that once.
        """
        if len(indexes) == 1:
            with contextlib.suppress(KernelNotFoundError):
                self.do(links.delete(indexes[0]))
        elif indexes:
            marked = self.execute([links.change(index, group=_DOOMED) for index in indexes])
            if not all(isinstance(error, KernelNotFoundError) for error in marked):
                with contextlib.suppress(KernelNotFoundError):  # each went by itself in between
                    self.do(links.delete_group(_DOOMED))
            for error in marked:
                if error is not None and not isinstance(error, KernelNotFoundError):
                    raise error

    # --- addresses ---

    def addresses(self, device: Device = 0) -> list[InterfaceAddress]:
        """Of one device, or of all."""
        wanted = self.link_index(device)
        found = [addresses.unpack(m) for m in self._netlink.dump(addresses.get_all(wanted))]
        return [a for a in found if a is not None and wanted in (0, a.link)]

    def add_address(
        self, device: Device, address: Interface, *, nodad: bool = True, noprefixroute: bool = False
    ) -> None:
        """nodad: an IPv6 address is usable at once. noprefixroute: adds no connected route."""
        index = self.link_index(device)
        self.do(addresses.add(index, address, nodad=nodad, noprefixroute=noprefixroute, what=str(device)))

    def lend_address(self, device: Device, address: Interface, *, valid_s: int) -> None:
        """An address of ours (protocol 85) that goes by itself after valid_s seconds, if not lent again."""
        index = self.link_index(device)
        self.do(addresses.lend(index, address, valid_s=valid_s, protocol=PROTOCOL, what=str(device)))

    def delete_address(self, device: Device, address: Interface) -> None:
        self.do(addresses.delete(self.link_index(device), address, what=str(device)))

    def settle(self, held: Iterable[Address]) -> None:
        """Returns when packets to these addresses, on links that are up, are taken in here.

        IPv4 addresses are at once.
        The kernel makes the local route of an IPv6 address on a work queue of its own, moments after
        the address: until then a packet to it is sent out of the very link it came in by.
        Raises KernelError if that takes longer than ten seconds.
        """
        for address in held:
            if address.version == 4:
                continue
            end_s = time.monotonic() + _SETTLE_TIMEOUT_S
            while not self._is_local(address):
                if time.monotonic() > end_s:
                    detail = f"not in {_SETTLE_TIMEOUT_S} s; is its link up, and IPv6 not disabled there?"
                    raise KernelError.of(errno.ETIMEDOUT, f"local route of {address}", detail)
                time.sleep(_SETTLE_PAUSE_S)

    def _is_local(self, address: Address) -> bool:
        try:
            answers = [routes.unpack(m) for m in self._netlink.ask(routes.look_up(address))]
        except KernelError:
            return False  # no route at all yet
        return any(route is not None and route.kind == RouteKind.LOCAL for route in answers)

    # --- routes ---

    def routes(self, family: Family | None = None, *, protocol: int = 0, table: int = 0) -> list[KernelRoute]:
        """family None: both. protocol, table 0: any."""
        found: list[KernelRoute] = []
        for wanted in (family,) if family else Family:
            try:
                messages = self._netlink.dump(routes.get_all(wanted, protocol=protocol, table=table))
            except KernelNotFoundError:
                continue  # the namespace has not had a route in this table yet
            for message in messages:
                route = routes.unpack(message)
                # A kernel that lacks a family, or the filter, answers with more than it was asked for.
                if (
                    route is not None
                    and family_of(route.destination) is wanted
                    and protocol in (0, route.protocol)
                    and table in (0, route.table)
                ):
                    found.append(route)
        return found

    def add_route(
        self,
        destination: Prefix,
        *,
        via: Address | None = None,
        device: Device = 0,
        source: Address | None = None,
        onlink: bool = False,
        mtu_bytes: int = 0,
        metric: int = 0,
        protocol: int = PROTOCOL,
        table: int = MAIN_TABLE,
        kind: int = RouteKind.UNICAST,
        advmss_bytes: int = 0,
        scope: int | None = None,
        replace: bool = False,
    ) -> None:
        """onlink: the next hop need not be on a connected subnet. source: preferred source address."""
        link = self.link_index(device)
        route = KernelRoute(
            destination,
            via,
            link,
            source,
            onlink,
            mtu_bytes,
            metric,
            protocol,
            table,
            kind,
            advmss_bytes,
            scope,
        )
        self.do(routes.add(route, replace=replace))

    def delete_route(
        self,
        destination: Prefix,
        *,
        device: Device = 0,
        protocol: int = PROTOCOL,
        table: int = MAIN_TABLE,
    ) -> None:
        route = KernelRoute(destination, None, self.link_index(device), protocol=protocol, table=table)
        self.do(routes.delete(route))

    def look_up(self, destination: Address) -> KernelRoute:
        """The route that a packet of this namespace takes there. Raises KernelError when none does."""
        found = routes.unpack(self._netlink.ask(routes.look_up(destination))[0])
        if found is None or found.kind != RouteKind.UNICAST:
            raise KernelError.of(errno.ENETUNREACH, f"look up {destination}")
        return found

    # --- neighbours and forwarding entries ---

    def neighbours(self, family: Family | None = None) -> list[KernelNeighbour]:
        found: list[KernelNeighbour] = []
        for wanted in (family,) if family else Family:
            entries = map(neighbours.unpack_neighbour, self._netlink.dump(neighbours.get_neighbours(wanted)))
            found += [e for e in entries if e is not None and family_of(e.address) is wanted]
        return found

    def set_neighbour(self, device: Device, address: Address, mac: str) -> None:
        """A permanent entry, in place of whatever the address had."""
        self.do(neighbours.set_neighbour(self.link_index(device), address, mac))

    def delete_neighbour(self, device: Device, address: Address) -> None:
        self.do(neighbours.delete_neighbour(self.link_index(device), address))

    def fdb(self, device: Device) -> list[KernelFdb]:
        found = map(neighbours.unpack_fdb, self._netlink.dump(neighbours.get_fdb(self.link_index(device))))
        return [entry for entry in found if entry is not None]

    def set_fdb(self, device: Device, mac: str, remote: Address) -> None:
        """Frames for mac go to remote. A group address (or 00:00:00:00:00:00) collects several hosts."""
        self.do(neighbours.set_fdb(self.link_index(device), mac, remote))

    def delete_fdb(self, device: Device, mac: str, remote: Address) -> None:
        self.do(neighbours.delete_fdb(self.link_index(device), mac, remote))
