"""Keeps the links, neighbours, forwarding entries and routes of one node as the tables say.

Order: bridges, tunnels, ports, neighbours, forwarding entries, routes, so that a route never leads to a
neighbour the kernel would have to ask for; what goes, goes afterwards and in reverse. A changed row is
replaced in one request: there is no moment without it.

Ours, and all that is ever read or removed here:
    VXLAN links named pl…; bridges of our alias, and those that have a row's name (rtnl/bridges.py)
    permanent neighbours on links named pl… and on our bridges, and the forwarding entries of our VXLAN links
    routes of protocol 85 in the main table
A pod's own link (pl… too, but a veth) belongs to the CNI room; when it goes, the kernel removes what was
on it, so that a removal that finds nothing has succeeded.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from podlane.compile.tables import BridgeLink, FdbEntry, Neighbour, Port, Route, Table, VxlanLink
from podlane.delta import Delta, delta, merge
from podlane.errors import KernelError, KernelExistsError, KernelNotFoundError
from podlane.kernel.driver import Failure, Report
from podlane.kernel.netlink import Request
from podlane.kernel.rtnl import bridges, links, neighbours, routes, vxlan
from podlane.kernel.rtnl.links import Link
from podlane.kernel.rtnl.routes import MAIN_TABLE, PROTOCOL, KernelRoute, RouteKind
from podlane.kernel.rtnl.rtnl import Rtnl
from podlane.model.addresses import family_of

PREFIX: Final = "pl"
_FLANNEL: Final = ("flannel.1", "flannel-v6.1")
DEVICES: Final = (Table.BRIDGES, Table.LINKS)
TABLES: Final = (*DEVICES, Table.PORTS, Table.NEIGHBOURS, Table.FDB, Table.ROUTES)


class RtnlDriver:
    """The Driver of kernel/driver.py for TABLES, in namespace netns_fd (None: the caller's).

    It remembers what is desired, since a VXLAN device that must be made anew takes everything on it
    along, and that is then restored in the same generation.
    """

    def __init__(self, netns_fd: int | None = None) -> None:
        self._rt = Rtnl(netns_fd)
        self._desired: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def close(self) -> None:
        self._rt.close()

    def actual(self) -> dict[Table, dict[Any, Any]]:
        """What the kernel holds of ours, as rows."""
        return self._actual(self._routes())

    def _actual(self, held_routes: list[KernelRoute]) -> dict[Table, dict[Any, Any]]:
        found = self._rt.links()
        name = {link.index: link.name for link in found}
        adopted = {row.device for t in (Table.PORTS, Table.NEIGHBOURS) for row in self._desired[t].values()}
        ours = {link.index: link for link in found if self._is_ours(link, adopted)}
        tunnels = [link for link in ours.values() if link.kind == "vxlan"]
        bridged = [link for link in ours.values() if link.kind == "bridge"]
        held = self._rt.addresses() if tunnels or bridged else []
        fdb = [e for link in tunnels for e in self._rt.fdb(link.index) if e.permanent and e.remote]
        return {
            Table.BRIDGES: bridges.rows(bridged, held),
            Table.PORTS: {
                link.name: Port(link.name, name[link.master], link.hairpin)
                for link in ours.values()
                if link.master in ours and link.kind == "veth"
            },
            Table.LINKS: vxlan.rows(tunnels, name, held),
            Table.NEIGHBOURS: {
                (name[e.link], e.address): Neighbour(name[e.link], e.address, e.mac)
                for e in self._rt.neighbours()
                if e.permanent and e.link in ours
            },
            Table.FDB: {
                (name[e.link], e.mac): FdbEntry(name[e.link], e.mac, e.remote)
                for e in fdb
                if e.remote is not None
            },
            Table.ROUTES: {
                r.destination: Route(
                    r.destination, r.via, name.get(r.link, ""), r.source, r.onlink, r.mtu_bytes
                )
                for r in held_routes
                if not _stray(r)
            },
        }

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        """Reads the kernel and repairs by difference; right rows are not touched."""
        self._desired = {table: dict(desired.get(table, {})) for table in TABLES}
        return self._repair()

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        for table, change in changes.items():
            merge(self._desired[table], change)
        if any(changes.get(table) for table in DEVICES):
            return self._repair()
        batch = _Batch(self._rt)
        batch.rows(changes)
        return batch.report()

    def _repair(self) -> Report:
        batch = _Batch(self._rt)
        batch.bridges(self._desired[Table.BRIDGES])
        batch.links(self._desired[Table.LINKS])
        held_routes = self._routes()
        actual = self._actual(held_routes)
        differences = {table: delta(self._desired[table], actual[table]) for table in TABLES}
        batch.rows(differences)
        batch.remove_links(Table.LINKS, differences[Table.LINKS].removed)
        batch.remove_links(Table.BRIDGES, differences[Table.BRIDGES].removed)
        batch.remove_strays(route for route in held_routes if _stray(route))
        return batch.report()

    def _is_ours(self, link: Link, adopted: Collection[str]) -> bool:
        """adopted: pods' links that have rows, of whatever name another plugin gave them."""
        if link.kind == "bridge":
            return bridges.ours(link) or link.name in self._desired[Table.BRIDGES]
        return link.name.startswith(PREFIX) or (link.kind == "veth" and link.name in adopted)

    def _routes(self) -> list[KernelRoute]:
        return self._rt.routes(protocol=PROTOCOL, table=MAIN_TABLE)


def _stray(route: KernelRoute) -> bool:
    """Carries our protocol number but is no row this version can have written."""
    return route.kind != RouteKind.UNICAST or route.metric != 0


class _Step(NamedTuple):
    """row: what the request writes, None for a removal."""

    table: Table
    key: Any
    request: Request
    row: Any = None


class _Batch:
    """The requests of one generation, and what became of them."""

    def __init__(self, rt: Rtnl) -> None:
        self._rt = rt
        self._operations = 0
        self._failures: list[Failure] = []
        self._indexes: dict[str, int | None] = {}

    def report(self) -> Report:
        return Report(self._operations, tuple(self._failures))

    # --- links ---

    def bridges(self, desired: Mapping[str, BridgeLink]) -> None:
        """Makes or repairs each desired bridge; those that are right cost no request."""
        for name, row in desired.items():
            try:
                present = self._rt.find_link(name)
                if present is None:
                    self._do(bridges.create(row))
                    present = self._rt.link(name)
                elif present.kind != "bridge":
                    what = f"a link {name} is there that is no bridge: remove it, or set link.bridge"
                    raise KernelError.of(errno.EEXIST, f"add bridge {name}", what)
                repairs = bridges.repair(row, present, self._rt.addresses(present.index))
                if repairs:
                    self._do(repairs)
                    self._rt.settle(address.ip for address in row.addresses)
            except KernelError as error:
                self._failures.append(Failure(Table.BRIDGES, name, error))

    def links(self, desired: Mapping[str, VxlanLink]) -> None:
        """Makes, repairs or makes anew each desired device; those that are right cost no request."""
        for name, row in desired.items():
            try:
                underlay = self._rt.link_index(row.underlay)
                present = self._rt.find_link(name)
                if present is not None and not vxlan.same_device(row, present, underlay):
                    self._operations += 1
                    self._rt.delete_link(name, missing_ok=True)
                    present = None
                if present is None:
                    self._do(vxlan.create(row, underlay))
                    present = self._rt.link(name)
                repairs = vxlan.repair(row, present, self._rt.addresses(present.index))
                if repairs:
                    self._do(repairs)
                    self._rt.settle(prefix.network_address for prefix in row.addresses)
            except KernelError as error:
                self._failures.append(Failure(Table.LINKS, name, error))

    def remove_links(self, table: Table, removed: Iterable[str]) -> None:
        for name in removed:
            try:
                self._operations += 1
                self._rt.delete_link(name, missing_ok=True)
            except KernelError as error:
                self._failures.append(Failure(table, name, error))

    def _do(self, requests: list[Request]) -> None:
        self._operations += len(requests)
        self._rt.do(*requests)

    # --- neighbours, forwarding entries, routes ---

    def rows(self, changes: Mapping[Table, Delta[Any, Any]]) -> None:
        tables = [table for table in TABLES if table in changes and table not in DEVICES]
        writes: list[_Step] = []
        removals: list[_Step] = []
        for table in tables:
            for key, row in changes[table].added.items():
                writes += self._set(table, key, None, row)
            for key, change in changes[table].changed.items():
                writes += self._set(table, key, change.old, change.new)
        for table in reversed(tables):
            if table is Table.PORTS:
                continue  # a port goes with its link; one without a row is being made by CNI at this moment
            for key, row in changes[table].removed.items():
                link = self._index(row.device)
                if link is not None:
                    removals.append(_Step(table, key, _remove(table, row, link)))
        self._write(writes)
        self._remove(removals)

    def remove_strays(self, strays: Iterable[KernelRoute]) -> None:
        self._remove([_Step(Table.ROUTES, route.destination, routes.delete(route)) for route in strays])

    def _set(self, table: Table, key: Any, old: Any, new: Any) -> list[_Step]:
        what = f"set {table} {_words(key)}"
        link = self._index(new.device)
        if link is None:
            error = KernelError.of(errno.ENODEV, what, f"there is no link {new.device}")
            self._failures.append(Failure(table, key, error))
            return []
        master = self._index(new.bridge) if table is Table.PORTS else None
        if table is Table.PORTS and master is None:
            error = KernelError.of(errno.ENODEV, what, f"there is no bridge {new.bridge}")
            self._failures.append(Failure(table, key, error))
            return []
        try:
            return [_Step(table, key, request, new) for request in _write(table, old, new, link, master)]
        except ValueError as error:
            self._failures.append(Failure(table, key, KernelError.of(errno.EINVAL, what, str(error))))
            return []

    def _write(self, steps: list[_Step]) -> None:
        self._operations += len(steps)
        for step, error in zip(steps, self._rt.execute([step.request for step in steps]), strict=True):
            if step.table is Table.ROUTES and isinstance(error, KernelExistsError):
                error = self._take_over(step, error)
            elif error is not None and error.errno == errno.ENETDOWN and step.row.device.startswith(PREFIX):
                error = self._put_up(step)
            if error is not None:
                self._failures.append(Failure(step.table, step.key, error))

    def _put_up(self, step: _Step) -> KernelError | None:
        """Somebody set our link down, and its routes went: it is set up, and they come back."""
        self._operations += 2
        try:
            self._rt.set_up(step.row.device)
        except KernelError as error:
            return error
        return self._rt.execute([step.request])[0]

    def _take_over(self, step: _Step, refusal: KernelError) -> KernelError | None:
        """An added route's place is taken: ours is replaced, and what a bridge that was taken over, or
        Flannel's device, brought along; another's is left alone and told."""
        link = self._index(step.row.device)
        present = self._rt.routes(family_of(step.key), table=MAIN_TABLE)
        yielding = {link, *filter(None, map(self._index, _FLANNEL))}
        there = [r for r in present if r.destination == step.key and not _stray(r)]
        if link is None or not any(r.protocol == PROTOCOL or r.link in yielding for r in there):
            detail = "another route, not podlane's, has the same destination: remove it, or use other CIDRs"
            return KernelError.of(refusal.errno, refusal.operation, detail)
        self._operations += 1
        return self._rt.execute([routes.add(_kernel_route(step.row, link), replace=True)])[0]

    def _remove(self, steps: list[_Step]) -> None:
        self._operations += len(steps)
        for step, error in zip(steps, self._rt.execute([step.request for step in steps]), strict=True):
            if error is not None and not isinstance(error, KernelNotFoundError):
                self._failures.append(Failure(step.table, step.key, error))

    def _index(self, device: str) -> int | None:
        """None if there is no such link now. Names are looked up once a generation, never kept longer:
        a link of the same name may be another one by then."""
        if device not in self._indexes:
            link = self._rt.find_link(device) if device else None
            self._indexes[device] = link.index if link else None
        return self._indexes[device]


def _write(table: Table, old: Any, new: Any, link: int, master: int | None) -> list[Request]:
    match table:
        case Table.PORTS:
            port = links.change(link, master=master, what=new.device)
            return [port, links.set_hairpin(link, new.hairpin, what=new.device)]
        case Table.NEIGHBOURS:
            return [neighbours.set_neighbour(link, new.address, new.mac)]
        case Table.FDB:
            requests = [neighbours.set_fdb(link, new.mac, new.remote)]
            if old is not None and neighbours.is_group_mac(new.mac):
                requests.append(neighbours.delete_fdb(link, old.mac, old.remote))
            return requests
        case _:
            return [routes.add(_kernel_route(new, link), replace=old is not None)]


def _remove(table: Table, row: Any, link: int) -> Request:
    match table:
        case Table.NEIGHBOURS:
            return neighbours.delete_neighbour(link, row.address)
        case Table.FDB:
            return neighbours.delete_fdb(link, row.mac, row.remote)
        case _:
            return routes.delete(_kernel_route(row, link))


def _kernel_route(row: Route, link: int) -> KernelRoute:
    return KernelRoute(row.destination, row.via, link, row.source, row.onlink, row.mtu_bytes)


def _words(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
