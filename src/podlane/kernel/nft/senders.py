"""What pods may send as, and who may send to the node's VXLAN port: the driver of SENDERS and TUNNEL_SOURCES.

Policy or not, a pod whose root has gone wrong speaks for itself alone. The tables `podlane-senders` are
constant; a pod's link is elements of their sets. Before anything else sees a packet (conntrack too):

    ip, ip6   prerouting    what comes by a pod's own link has its address as source. IPv6 also: neighbour
                            discovery of link-local addresses, and never a router's advertisement or redirect
              input         VXLAN from none of the cluster's nodes is dropped: a frame inside could say
              anything
    bridge    prerouting    a port sends with its own MAC address, in ARP too, and with its own IP address

Policy's tables (policy_chains.py) check the sender as well, where it chooses a pod's rules by it, and on
bridges what neighbours are told (ARP, neighbour advertisements).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

from podlane.compile.tables import Sender, Table, TunnelSource
from podlane.delta import Delta, merge
from podlane.errors import KernelExistsError, KernelNotFoundError
from podlane.kernel.driver import Failure, Report
from podlane.kernel.nft import codec, command
from podlane.kernel.nft.codec import BRIDGE, Element, TableFamily
from podlane.kernel.nft.elements import Elements, Operation
from podlane.kernel.rtnl.links import pack_mac
from podlane.model.addresses import Family, family_of
from podlane.model.config import NetworkConfig

TABLE: Final = "podlane-senders"
LINKS, SENDERS, SENDERS6, MACS, PORTS, SOURCES = "links", "senders", "senders6", "macs", "ports", "sources"
TABLES: Final = (Table.SENDERS, Table.TUNNEL_SOURCES)
_IP_SETS: Final = (SENDERS, LINKS, SOURCES, PORTS)
_BRIDGE_SETS: Final = (MACS, SENDERS, SENDERS6, LINKS)

Place: TypeAlias = tuple[TableFamily, str, bytes]

# Multicast listeners' reports (RFC 2710, 3810) and neighbour discovery (RFC 4861), but for what routers say.
_DISCOVERY: Final = "icmpv6 type { 131, 132, 133, 135, 136, 143 }"
_ROUTERS: Final = "icmpv6 type { 134, 137 }"


def skeleton(family: TableFamily) -> str:
    """The table of one family, without elements."""
    body = _bridge() if family is BRIDGE else _ip(family)
    return f"table {family.nft} {TABLE} {{\n{body}\n\tchain {version(family)} {{\n\t}}\n}}\n"


def version(family: TableFamily) -> str:
    """The name of an empty chain that says which skeleton is loaded."""
    body = _bridge() if family is BRIDGE else _ip(family)
    return "version-" + hashlib.sha256(body.encode()).hexdigest()[:12]


def _ip(family: TableFamily) -> str:
    ip = family.nft
    kind = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    routers = discovery = ""
    if family is Family.IPV6:
        routers = f"\n\t\t{_ROUTERS} counter drop"
        discovery = f"\n\t\t{_DISCOVERY} ip6 saddr {{ fe80::/10, :: }} accept"
    return f"""\
	set {LINKS} {{
		type ifname
	}}
	set {SENDERS} {{
		type ifname . {kind}
	}}
	set {PORTS} {{
		type inet_service
	}}
	set {SOURCES} {{
		type inet_service . {kind}
	}}
	chain check {{{routers}
		iifname . {ip} saddr @{SENDERS} accept{discovery}
		counter drop
	}}
	chain prerouting {{
		type filter hook prerouting priority -310; policy accept;
		iifname @{LINKS} goto check
	}}
	chain input {{
		type filter hook input priority -310; policy accept;
		iif != "lo" udp dport @{PORTS} udp dport . {ip} saddr != @{SOURCES} counter drop
	}}"""


def _bridge() -> str:
    return f"""\
	set {LINKS} {{
		type ifname
	}}
	set {MACS} {{
		type ifname . ether_addr
	}}
	set {SENDERS} {{
		type ifname . ipv4_addr
	}}
	set {SENDERS6} {{
		type ifname . ipv6_addr
	}}
	chain check {{
		iifname . ether saddr != @{MACS} counter drop
		ether type arp iifname . arp saddr ether != @{MACS} counter drop
		ether type arp iifname . arp saddr ip @{SENDERS} accept
		ether type ip iifname . ip saddr @{SENDERS} accept
		ether type ip6 {_ROUTERS} counter drop
		ether type ip6 iifname . ip6 saddr @{SENDERS6} accept
		ether type ip6 {_DISCOVERY} ip6 saddr {{ fe80::/10, :: }} accept
		counter drop
	}}
	chain prerouting {{
		type filter hook prerouting priority -510; policy accept;
		iifname @{LINKS} goto check
	}}"""


def elements(row: Sender | TunnelSource) -> Iterator[tuple[TableFamily, str, Element]]:
    """What a row is in the kernel. LINKS and PORTS may be other rows' too."""
    if isinstance(row, TunnelSource):
        port = codec.port_field(row.port)
        if row.address is None:
            for family in Family:
                yield family, PORTS, Element(port)
        else:
            yield family_of(row.address), SOURCES, Element(codec.fields(port, row.address.packed))
        return
    link = row.device.encode().ljust(16, b"\0")
    if row.bridge:
        yield BRIDGE, MACS, Element(codec.fields(link, pack_mac(row.mac)))
        for address in row.addresses:
            name = SENDERS if address.version == 4 else SENDERS6
            yield BRIDGE, name, Element(codec.fields(link, address.packed))
        yield BRIDGE, LINKS, Element(link)
        return
    for address in row.addresses:
        yield family_of(address), SENDERS, Element(codec.fields(link, address.packed))
    for family in Family:
        yield family, LINKS, Element(link)


class SendersDriver:
    """For the network namespace netns_fd, or that of the calling thread. Blocking; for one thread.

    A table is made when the first row of its family comes.
    """

    def __init__(self, config: NetworkConfig, netns_fd: int | None = None) -> None:
        self._families = tuple(config.ip_families)
        self._netns_fd = netns_fd
        self._elements = Elements(TABLE, netns_fd)
        self._rows: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}
        self._held: Counter[Place] = Counter()

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def close(self) -> None:
        self._elements.close()

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        """Reads the kernel and repairs by difference."""
        self._rows = {table: dict(desired.get(table, {})) for table in TABLES}
        return self._repair()

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        held, operations = self._held.copy(), list[Operation]()
        for table in TABLES:
            change = changes.get(table)
            if change is None:
                continue
            merge(self._rows[table], change)
            for new in (*change.added.values(), *(each.new for each in change.changed.values())):
                operations += self._counted(held, new, add=True)
            for old in (*(each.old for each in change.changed.values()), *change.removed.values()):
                operations += self._counted(held, old, add=False)
        for family in {operation.family for operation in operations}:
            if not self._loaded(family):
                return self._repair()
        try:
            refused = self._elements.commit(operations)
        except (KernelNotFoundError, KernelExistsError):
            return self._repair()
        if refused:
            return self._repair()
        self._held = +held
        return Report(len(operations))

    def _counted(self, held: Counter[Place], row: Sender | TunnelSource, *, add: bool) -> Iterator[Operation]:
        for family, name, element in elements(row):
            if family is not BRIDGE and family not in self._families:
                continue
            place = family, name, element.key
            held[place] += 1 if add else -1
            if held[place] == (1 if add else 0):
                yield Operation(cast(Family, family), name, element, add)

    def _repair(self) -> Report:
        wanted: dict[Place, Operation] = {}
        self._held = Counter()
        for rows in self._rows.values():
            for row in rows.values():
                for operation in self._counted(self._held, row, add=True):
                    wanted[operation.family, operation.set, operation.element.key] = operation
        done = 0
        removals: list[Operation] = []
        families: list[TableFamily] = [*self._families, BRIDGE]
        for family in families:
            needed = any(place[0] is family for place in wanted)
            if needed and not self._loaded(family):
                fresh = f"add table {family.nft} {TABLE}\ndelete table {family.nft} {TABLE}\n"
                command.load(fresh + skeleton(family), self._netns_fd)
                done += 1
            elif not self._elements.table_exists(cast(Family, family)):
                continue
            for name in _BRIDGE_SETS if family is BRIDGE else _IP_SETS:
                for each in self._elements.read(cast(Family, family), name):
                    if (family, name, each.key) in wanted:
                        del wanted[family, name, each.key]
                    else:
                        removals.append(Operation(cast(Family, family), name, each, add=False))
        # What may be sent comes before the links it is asked of, and goes after them.
        operations = [*reversed(removals), *sorted(wanted.values(), key=_last)]
        refused = self._elements.commit(operations)
        failures = tuple(Failure(Table.SENDERS, str(each.operation.set), each.error) for each in refused)
        return Report(done + len(operations), failures)

    def _loaded(self, family: TableFamily) -> bool:
        return self._elements.chain_exists(cast(Family, family), version(family))


def _last(operation: Operation) -> bool:
    return operation.set in (LINKS, PORTS)
