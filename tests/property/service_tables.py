"""Random service tables; and what the kernel's elements say, read back independently of the driver."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import collapse_addresses
from typing import Any

from hypothesis import strategies as st

from podlane.compile import hashing
from podlane.compile.tables import (
    Backend,
    BackendList,
    Frontend,
    FrontendClass,
    FrontendKey,
    ListKey,
    NodePortKey,
    SetMember,
    SetName,
    Table,
)
from podlane.kernel.nft.codec import Element
from podlane.model.addresses import Family, Protocol, address, prefix
from podlane.model.config import Balancing

Tables = dict[Table, dict[Any, Any]]
Dump = Mapping[tuple[Family, str], Iterable[Element]]

SERVICES = ("a", "b", "c")
PREFIXES = (
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.2.0.0/15",
    "10.3.0.0/16",
    "255.255.255.0/24",
    "fd00::/16",
    "fd01::/64",
    "ff00::/8",
)
HOSTS = ("10.0.0.1/32", "10.0.0.2/32", "fd00::1/128", "fd00::2/128")
WIDE = {SetName.SERVICE_CIDRS, SetName.POD_CIDRS, SetName.CLUSTER_CIDRS}


def backend(family: Family, number: int) -> Backend:
    return Backend(
        address(f"10.9.0.{number}" if family is Family.IPV4 else f"fd09::{number}"), 8000 + number % 2
    )


def list_key(service: str, protocol: Protocol, family: Family, scope: str) -> ListKey:
    return ListKey("default", service, "http", protocol, family, scope)


@st.composite
def lists(draw: st.DrawFn, family: Family) -> BackendList:
    numbers = draw(st.lists(st.integers(1, 6), max_size=6))
    timeout_s = draw(st.sampled_from([0, 0, 60, 90]))
    sources = draw(st.lists(st.sampled_from([p for p in PREFIXES if (":" in p) == (family is Family.IPV6)])))
    balancing = draw(st.sampled_from([Balancing.RANDOM, *Balancing]))
    hashed = numbers and balancing in (Balancing.MAGLEV, Balancing.SOURCE_HASH)
    return BackendList(
        tuple(backend(family, n) for n in numbers),
        timeout_s,
        sources=tuple(map(prefix, sources)),
        balancing=balancing,
        by_port=bool(hashed) and draw(st.booleans()),
        slots=251 if hashed else 0,
    )


@st.composite
def frontends(draw: st.DrawFn, protocol: Protocol, family: Family) -> Frontend:
    kind, service = draw(st.sampled_from(list(FrontendClass))), draw(st.sampled_from(SERVICES))
    cluster, local = (list_key(service, protocol, family, scope) for scope in ("cluster", "local"))
    if kind in (FrontendClass.DROP, FrontendClass.REJECT):
        return Frontend(kind, None)
    guarded = kind is not FrontendClass.INTERNAL and draw(st.booleans())
    if kind is FrontendClass.EXTERNAL_LOCAL:
        return Frontend(kind, local, cluster, guarded)
    if kind is FrontendClass.EXTERNAL:
        return Frontend(kind, draw(st.sampled_from([cluster, local])), guarded=guarded)
    return Frontend(kind, draw(st.sampled_from([cluster, local])))


@st.composite
def tables(draw: st.DrawFn) -> Tables:
    families, protocols = st.sampled_from(list(Family)), st.sampled_from([Protocol.TCP, Protocol.UDP])
    found: Tables = {Table.SETS: {}, Table.BACKENDS: {}, Table.FRONTENDS: {}, Table.NODE_PORTS: {}}
    for name in draw(st.lists(st.sampled_from(list(SetName)), max_size=6)):
        text = draw(st.sampled_from(PREFIXES if name in WIDE else HOSTS))
        row = SetMember(name, prefix(text))
        found[Table.SETS][row] = row
    for _ in range(draw(st.integers(0, 6))):
        family, protocol = draw(families), draw(protocols)
        scope = draw(st.sampled_from(["cluster", "local"]))
        key = list_key(draw(st.sampled_from(SERVICES)), protocol, family, scope)
        found[Table.BACKENDS][key] = draw(lists(family))
    for _ in range(draw(st.integers(0, 6))):
        family, protocol, number = draw(families), draw(protocols), draw(st.integers(1, 3))
        row = draw(frontends(protocol, family))
        if draw(st.booleans()):
            where = address(f"10.96.0.{number}" if family is Family.IPV4 else f"fd96::{number}")
            found[Table.FRONTENDS][FrontendKey(where, protocol, 80)] = row
        else:
            found[Table.NODE_PORTS][NodePortKey(family, protocol, 30000 + number)] = row
    return found


# --- reading back ---------------------------------------------------------------------------------

_CLASSES = {
    1: FrontendClass.INTERNAL,
    2: FrontendClass.EXTERNAL,
    3: FrontendClass.EXTERNAL_LOCAL,
    4: FrontendClass.EXTERNAL,
    5: FrontendClass.EXTERNAL_LOCAL,
    14: FrontendClass.DROP,
    15: FrontendClass.REJECT,
}


class Kernel:
    """Follows a flow through dumped elements as the chains would."""

    def __init__(self, dump: Dump) -> None:
        self.maps = {place: {e.key: e.data for e in elements} for place, elements in dump.items()}
        self.dump = dump

    def map(self, family: Family, name: str) -> dict[bytes, bytes | None]:
        return self.maps.get((family, name), {})

    def frontends(self) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for family in Family:
            for key, data in self.map(family, "frontends").items():
                size = family.bits // 8
                where, (protocol, port) = (
                    ipaddress.ip_address(key[:size]),
                    struct.unpack("!B3xHxx", key[size:]),
                )
                found[where, protocol, port] = self.behaviour(family, data)
            for key, data in self.map(family, "node-ports").items():
                protocol, port = struct.unpack("!B3xHxx", key)
                found[family, protocol, port] = self.behaviour(family, data)
        return found

    def behaviour(self, family: Family, data: bytes | None) -> Any:
        """(class, who may come in, endpoints, timeout, the short circuit's endpoints and timeout)"""
        assert data is not None
        (mark,) = struct.unpack("=I", data)
        klass = mark >> 28
        kind = _CLASSES[klass if klass > 13 else klass & 7]
        if klass > 13:
            return kind, None, *self.endpoints(family, 0), None
        short = None
        other = self.map(family, "short-circuits").get(struct.pack("=I", mark & 0x3FFFF))
        if kind is FrontendClass.EXTERNAL_LOCAL and other is not None:
            short = self.endpoints(family, *struct.unpack("=I", other))
        sources = self.sources(family, mark & 0x3FFFF) if klass & 7 in (4, 5) else None
        return kind, sources, *self.endpoints(family, mark), short

    def sources(self, family: Family, number: int) -> list[tuple[int, int]]:
        """Ranges [first, last] that may use the list's guarded frontends."""
        return sorted(
            (int.from_bytes(e.key[4:], "big"), int.from_bytes((e.last or e.key)[4:], "big"))
            for e in self.dump.get((family, "source-ranges"), ())
            if e.key[:4] == struct.pack("!I", number)
        )

    def endpoints(self, family: Family, mark: int) -> tuple[Counter[Any], int]:
        """What the chain of the mark's count may draw, and for how long a client keeps it."""
        number, count, affinity = mark & 0x3FFFF, mark >> 18 & 0x3FF, mark >> 31
        found: Counter[Any] = Counter()
        timeouts = [
            int(n[7:])
            for f, n in self.maps
            if f is family and n.startswith("sticky-") and struct.pack("=I", number) in self.map(f, n)
        ]
        for index in range({600: 251, 601: 251}.get(count, count)):
            key = struct.pack("=II", number, index)
            data = self.map(family, "picks" if affinity else "endpoints")[key]
            assert data is not None
            if affinity:
                (mark,) = struct.unpack("=I", data)
                assert mark >> 28 == 8
                assert mark & 0x3FFFF == number
                data = self.map(family, "slots")[struct.pack("=I", mark & 0x0FFFFFFF)]
                assert data is not None
            size = family.bits // 8
            found[ipaddress.ip_address(data[:size]), struct.unpack("!Hxx", data[size:])[0]] += 1
        assert len(timeouts) == bool(affinity)
        return found, sum(timeouts)

    def sets(self) -> dict[Any, set[int]]:
        """Host sets by member; interval sets as the edges between in and out."""
        found: dict[Any, set[int]] = {}
        for (family, name), elements in self.dump.items():
            if name in list(SetName):
                size = family.bits // 8
                edges = {(int.from_bytes(e.key[:size], "big"), e.flags) for e in elements}
                found[family, name] = {n for n, flags in edges if (n, flags) != (0, 1)}
        return {place: values for place, values in found.items() if values}


def wanted_frontends(desired: Tables) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for table in (Table.FRONTENDS, Table.NODE_PORTS):
        for key, row in desired[table].items():
            short = list_of(desired, row.short_circuit) if row.kind is FrontendClass.EXTERNAL_LOCAL else None
            place = key.family if isinstance(key, NodePortKey) else key.address
            sources = sources_of(desired, row.backends) if row.guarded else None
            where = place, key.protocol.number, key.port
            found[where] = (row.kind, sources, *list_of(desired, row.backends), short)
    return found


def sources_of(desired: Tables, key: ListKey | None) -> list[tuple[int, int]]:
    """As ranges that neither overlap nor touch."""
    found: list[tuple[int, int]] = []
    for each in collapse_addresses(desired[Table.BACKENDS].get(key, BackendList(())).sources):
        first, last = int(each.network_address), int(each.broadcast_address)
        if found and found[-1][1] + 1 == first:
            first = found.pop()[0]
        found.append((first, last))
    return found


def list_of(desired: Tables, key: ListKey | None) -> tuple[Counter[Any], int]:
    row = desired[Table.BACKENDS].get(key, BackendList(()))
    table = hashing.table_of(row) if row.slots else row.backends
    return Counter((b.address, b.port) for b in table), row.affinity_timeout_s


def wanted_sets(desired: Tables) -> dict[Any, set[int]]:
    by_place: dict[Any, list[Any]] = {}
    for row in desired[Table.SETS]:
        family = Family.IPV4 if row.value.version == 4 else Family.IPV6
        by_place.setdefault((family, str(row.set)), []).append(row.value)
    return {place: _edges(place, values) for place, values in by_place.items()}


def _edges(place: tuple[Family, str], values: list[Any]) -> set[int]:
    family, name = place
    if name not in WIDE:
        return {int(v.network_address) for v in values}

    def inside(n: int) -> bool:
        return any(int(v.network_address) <= n <= int(v.broadcast_address) for v in values)

    corners = {int(v.network_address) for v in values} | {int(v.broadcast_address) + 1 for v in values}
    return {n for n in corners if n < 1 << family.bits and inside(n) != inside(n - 1)}
