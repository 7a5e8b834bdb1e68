"""host-local's ranges of addresses: read from a configuration, checked, and gone through in turn. Pure.

    {"subnet": "10.22.0.0/16", "rangeStart": ..., "rangeEnd": ..., "gateway": ...}     one range
    "ranges": [[range, range], [range]]      an attachment gets one address of each set

Defaults are the reference plugin's: the first address of the subnet is the gateway and not given out; the
last one (the directed broadcast of IPv4) is not given out either.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterator, Sequence
from itertools import combinations

from msgspec import Struct

from podlane.cni.fields import Fields
from podlane.cni.results import IpInterface
from podlane.model.addresses import Address, Prefix


class Range(Struct, frozen=True):
    """first, last: as numbers, inclusive. gateway: never given out."""

    subnet: Prefix
    first: int
    last: int
    gateway: Address

    def __contains__(self, address: object) -> bool:
        return (
            isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
            and address.version == self.subnet.version
            and self.first <= int(address) <= self.last
        )

    def __str__(self) -> str:
        return f"{self._address(self.first)}-{self._address(self.last)}"

    @property
    def size(self) -> int:
        """How many addresses it gives out."""
        return self.last - self.first + 1 - (self.gateway in self)

    def _address(self, value: int) -> Address:
        return self.subnet[value - int(self.subnet.network_address)]

    def interface(self, address: Address) -> IpInterface:
        return ipaddress.ip_interface((address.packed, self.subnet.prefixlen))


RangeSet = tuple[Range, ...]


def read(entry: Fields) -> Range | None:
    """None where it is at fault."""
    subnet = entry.prefix("subnet")
    start, end, gateway = (entry.address(key) for key in ("rangeStart", "rangeEnd", "gateway"))
    if subnet is None:
        if "subnet" not in entry:
            entry.fault("subnet", "is missing")
        return None
    if subnet.prefixlen > subnet.max_prefixlen - 2:
        entry.fault("subnet", f"{subnet} is too small: a /{subnet.max_prefixlen - 2} is the smallest")
        return None
    sound = True
    for key, address in (("rangeStart", start), ("rangeEnd", end)):
        if address is not None and address not in subnet:
            entry.fault(key, f"{address} is not in {subnet}")
            sound = False
    if gateway is not None and gateway.version != subnet.version:
        entry.fault("gateway", f"{gateway} is of another family than {subnet}")
        sound = False
    network, broadcast = int(subnet.network_address), int(subnet.broadcast_address)
    first = int(start) if start is not None else network + 1
    last = int(end) if end is not None else broadcast - (subnet.version == 4)
    if sound and first > last:
        entry.fault("rangeStart", f"{start} is after rangeEnd {end}")
        sound = False
    return Range(subnet, first, last, gateway or subnet[1]) if sound else None


def set_faults(sets: Sequence[RangeSet]) -> list[str]:
    """What is wrong with sets as a whole."""
    faults = []
    for place, ranges in enumerate(sets):
        if len({entry.subnet.version for entry in ranges}) > 1:
            faults.append(f"range set {place} mixes IPv4 and IPv6")
        faults += [
            f"range set {place}: {a} overlaps {b}" for a, b in combinations(ranges, 2) if _overlap(a, b)
        ]
    for (place, ours), (other, theirs) in combinations(enumerate(sets), 2):
        if any(_overlap(a, b) for a in ours for b in theirs):
            faults.append(f"range set {place} overlaps range set {other}")
    return faults


def _overlap(a: Range, b: Range) -> bool:
    return a.subnet.version == b.subnet.version and a.first <= b.last and b.first <= a.last


def shown(ranges: RangeSet) -> str:
    return ",".join(map(str, ranges))


def candidates(ranges: RangeSet, after: Address | None, held: Container[Address]) -> Iterator[IpInterface]:
    """The free addresses of a set, from the one after `after` around to it."""
    place = next((n for n, entry in enumerate(ranges) if after is not None and after in entry), None)
    if after is None or place is None:
        spans = [(entry, entry.first, entry.last) for entry in ranges]
    else:
        entry = ranges[place]
        others = [(r, r.first, r.last) for r in (*ranges[place + 1 :], *ranges[:place])]
        spans = [(entry, int(after) + 1, entry.last), *others, (entry, entry.first, int(after))]
    for entry, low, high in spans:
        base = int(entry.subnet.network_address)
        for value in range(low, high + 1):
            address = entry.subnet[value - base]
            if address != entry.gateway and address not in held:
                yield entry.interface(address)
