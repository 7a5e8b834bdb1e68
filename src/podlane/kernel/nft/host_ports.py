"""Host ports in nftables: a port of the node leads to a pod (Pod.spec.containers[].ports[].hostPort).

The table `podlane-ports` is constant; a mapping is elements of its sets and maps, so that one comes and
goes without a rule being touched. The first packet of a flow to an address of this node:

    prerouting, output   is its (protocol, port) in `ports`? Is the address one of the node's own?
    translate            `one` has mappings of one address (hostIP), `any` those of all
    postrouting          masquerades what the pod could not answer otherwise: a pod that reached itself
                         (`pods` has each with itself), and what came from the loopback address

It comes after services (priority -95, theirs is -100): a node port that is also a host port is a node
port, as with kube-proxy. Clients keep their address.

A packet to 127.0.0.1 leaves the node only with route_localnet, which would also let neighbours send to
the node's loopback addresses: `loopback` drops those, and is there before the setting is made. IPv6 knows
no such setting: an answer for ::1 from another link than lo is dropped whatever is done, so ::1 is left
alone, and who asks there is refused at once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, TypeAlias

from podlane.errors import KernelError
from podlane.kernel import netns, sysctl
from podlane.kernel.nft import codec, command
from podlane.kernel.nft.codec import Element
from podlane.kernel.nft.elements import Elements, Operation
from podlane.model.addresses import Address, Family, Protocol

TABLE: Final = "podlane-ports"
ANY, ONE, PORTS, PODS = "any", "one", "ports", "pods"
_SETS: Final = (ANY, ONE, PORTS, PODS)
_ROUTE_LOCALNET: Final = "net/ipv4/conf/all/route_localnet"
_LOOPBACK: Final = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1"}

Place: TypeAlias = tuple[Family, str, bytes]


class HostPort(NamedTuple):
    """address: the one of the node's addresses it is for; None for all of them."""

    family: Family
    protocol: Protocol
    port: int
    address: Address | None = None

    def __str__(self) -> str:
        where = f"{self.address or 'any address'} ({self.family})"
        return f"port {self.port}/{self.protocol} of {where}"


class Target(NamedTuple):
    """A pod's address and port."""

    address: Address
    port: int


Mappings: TypeAlias = Mapping[HostPort, Target]


def skeleton(family: Family) -> str:
    """The table of one family, without elements."""
    body = _body(family)
    return f"table {family.nft} {TABLE} {{\n{body}\n\tchain {version(family)} {{\n\t}}\n}}\n"


def version(family: Family) -> str:
    """The name of an empty chain that says which skeleton is loaded."""
    return "version-" + hashlib.sha256(_body(family).encode()).hexdigest()[:12]


def _body(family: Family) -> str:
    ip, kind, loopback = family.nft, "ipv4_addr" if family is Family.IPV4 else "ipv6_addr", _LOOPBACK[family]
    dnat = f"meta l4proto {{ tcp, udp, sctp }} dnat {ip} addr . port to"
    own, back = "", ""
    if family is Family.IPV4:
        back = f'\n\t\tct status dnat ip saddr {loopback} oif != "lo" masquerade fully-random'
    else:
        own = f"\n\t\tip6 daddr {loopback} return"
    return f"""\
	set {PORTS} {{
		type inet_proto . inet_service
	}}
	map {ONE} {{
		type {kind} . inet_proto . inet_service : {kind} . inet_service
	}}
	map {ANY} {{
		type inet_proto . inet_service : {kind} . inet_service
	}}
	set {PODS} {{
		type {kind} . {kind}
	}}
	chain translate {{
		{dnat} {ip} daddr . meta l4proto . th dport map @{ONE}
		{dnat} meta l4proto . th dport map @{ANY}
	}}
	chain loopback {{
		type filter hook prerouting priority -300; policy accept;
		iif != "lo" {ip} daddr {loopback} drop
		iif != "lo" {ip} saddr {loopback} drop
	}}
	chain prerouting {{
		type nat hook prerouting priority -95; policy accept;
		meta l4proto . th dport @{PORTS} fib daddr type local goto translate
	}}
	chain output {{
		type nat hook output priority -95; policy accept;{own}
		meta l4proto . th dport @{PORTS} fib daddr type local goto translate
	}}
	chain postrouting {{
		type nat hook postrouting priority 95; policy accept;
		ct status dnat {ip} saddr . {ip} daddr @{PODS} masquerade fully-random{back}
	}}"""


def elements(key: HostPort, target: Target) -> Iterator[tuple[str, Element]]:
    """What one mapping is in the kernel: (set, element). PORTS and PODS may be other mappings' too."""
    port = codec.fields(bytes([key.protocol.number]), codec.port_field(key.port))
    data = codec.fields(target.address.packed, codec.port_field(target.port))
    if key.address is None:
        yield ANY, Element(port, data)
    else:
        yield ONE, Element(codec.fields(key.address.packed) + port, data)
    yield PORTS, Element(port)
    yield PODS, Element(codec.fields(target.address.packed, target.address.packed))


class HostPortTable:
    """In the network namespace netns_fd, or the calling thread's. Blocking; for one thread.

    Raises KernelError; then nothing has changed. UnsupportedError without the program nft.
    """

    def __init__(self, netns_fd: int | None = None) -> None:
        self._netns_fd = netns_fd
        self._elements = Elements(TABLE, netns_fd)
        self._held: Counter[Place] = Counter()
        self._loaded: set[Family] = set()

    def close(self) -> None:
        self._elements.close()

    def resync(self, desired: Mappings) -> int:
        """Reads the kernel and repairs by difference. Returns how many operations that took.

        A table is made when the first mapping of its family comes.
        """
        done = sum(map(self._load, {key.family for key in desired}))
        wanted: dict[Place, Operation] = {}
        self._held = Counter()
        for place, operation in _operations(desired, add=True):
            self._held[place] += 1
            wanted[place] = operation
        removals: list[Operation] = []
        for family in Family:
            if self._elements.table_exists(family):
                for name in _SETS:
                    for each in self._elements.read(family, name):
                        there = wanted.get((family, name, each.key))
                        if there is not None and there.element.data == each.data:
                            del wanted[family, name, each.key]
                        else:
                            removals.append(Operation(family, name, each, add=False))
        operations = [*removals, *wanted.values()]
        self._commit(operations)
        return done + len(operations)

    def change(self, added: Mappings, removed: Mappings) -> None:
        """One transaction. What the caller knows to be there is not read back."""
        held = self._held.copy()
        operations: list[Operation] = []
        for place, operation in _operations(removed, add=False):
            held[place] -= 1
            if not held[place]:
                operations.append(operation)
        for place, operation in _operations(added, add=True):
            held[place] += 1
            if held[place] == 1:
                operations.append(operation)
        for family in {key.family for key in added} - self._loaded:
            self._load(family)
        self._commit(operations)
        self._held = +held

    def missing(self, mappings: Mappings) -> list[HostPort]:
        """Those that the kernel does not have as they should be."""
        found = []
        for key, target in mappings.items():
            name, element = next(elements(key, target))
            there = {each.key: each.data for each in self._elements.read(key.family, name)}
            if there.get(element.key) != element.data:
                found.append(key)
        return found

    def _commit(self, operations: list[Operation]) -> None:
        refused = self._elements.commit(operations)
        if refused:
            raise refused[0].error

    def _load(self, family: Family) -> int:
        """Makes the table if it is not there as this version has it. Returns how many that were."""
        made = 0
        if not self._elements.chain_exists(family, version(family)):
            fresh = f"add table {family.nft} {TABLE}\ndelete table {family.nft} {TABLE}\n"
            command.load(fresh + skeleton(family), self._netns_fd)
            made = 1
        self._loaded.add(family)
        if family is Family.IPV4:
            self._allow_loopback()
        return made

    def _allow_loopback(self) -> None:
        if self._netns_fd is not None:
            netns.write_sysctl(self._netns_fd, _ROUTE_LOCALNET, 1)
            return
        try:
            sysctl.write_node(_ROUTE_LOCALNET, "1")
        except KernelError as error:
            why = "needed for host ports of 127.0.0.1"
            raise KernelError.of(error.errno, error.operation, why) from None


def _operations(mappings: Mappings, *, add: bool) -> Iterator[tuple[Place, Operation]]:
    for key, target in mappings.items():
        for name, element in elements(key, target):
            yield (key.family, name, element.key), Operation(key.family, name, element, add, key)
