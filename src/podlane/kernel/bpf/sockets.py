"""Services at the socket: the driver of the service tables in services.mode socket, beside that of nftables.

It holds what compile/socket_lb.py says and nothing else. Whatever goes wrong here leaves a service to
nftables, which has all of them.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

from podlane.compile.tables import Backend, ListKey, Table
from podlane.delta import Delta
from podlane.errors import KernelError
from podlane.kernel import netns
from podlane.kernel.bpf import layout, syscall
from podlane.kernel.bpf.ending import Ending
from podlane.kernel.bpf.installation import Installation, Site
from podlane.kernel.bpf.sock_diag import Seen, Sockets
from podlane.kernel.bpf.socket_state import Operation, Plan, SocketState
from podlane.kernel.driver import Failure, Report
from podlane.kernel.sweeping import Gone
from podlane.model.config import NetworkConfig

TABLES: Final = (Table.SETS, Table.BACKENDS, Table.FRONTENDS, Table.NODE_PORTS)

_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h
_MANY: Final = 32


class Use(NamedTuple):
    """A socket and its service. netns: inode of its namespace. list: None for a service that is gone."""

    netns: int
    seen: Seen
    list: ListKey | None


class SocketDriver:
    """For the node whose namespace is netns_fd, or that of the calling thread, and whose processes are in
    site.cgroup. gone: tells which endpoints' pods are no more, so that connections to them end. Raises
    UnsupportedError without a compiled program."""

    at_once: Final = True

    def __init__(
        self, config: NetworkConfig, site: Site, netns_fd: int | None = None, *, gone: Gone | None = None
    ) -> None:
        self._config, self._netns_fd = config, netns_fd
        self._installed = Installation(site)
        self._state = SocketState(config.ip_families)
        self._ending = Ending(
            site.cgroup, self._sockets_of, gone if config.services.reset_gone_endpoints else None
        )
        self._maps = threading.Lock()  # metrics are read on other threads
        self._ready = False

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    @property
    def ending(self) -> Ending:
        """Ends sockets after a generation."""
        return self._ending

    def close(self) -> None:
        """Programs and maps stay."""
        self._ending.close()
        with self._maps:
            self._installed.close()

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        """Read the maps and repair by difference, then see to it that the programs run."""
        self._ready = False
        state = SocketState(self._config.ip_families)
        with self._maps:
            # Ten maps of a sized-up guess are better than one that grows ten times.
            self._installed.open(_rows(desired))
            cookie = layout.settings(self._cookie())
            syscall.update(self._installed.maps[layout.SETTINGS], bytes(4), cookie)
            there = {name: self._installed.read(name) for name in layout.DESIRED}
        state.adopt(there)
        everything = {table: Delta(dict(desired.get(table, {})), {}, {}) for table in TABLES}
        state.put(everything, silent=True)
        operations = _difference(state, there)
        failures = self._write(operations)
        with self._maps:
            attached = self._installed.attach()
        self._state, self._ready = state, True
        self._ending.submit(state.everything_gone())
        return self._report(len(operations) + attached, failures)

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        if not self._ready:
            return Report()  # what made the last resync fail has been told; the next one knows this too
        plan = self._state.put(changes)
        operations = plan.ordered()
        failures = self._write(operations)
        self._ending.submit(plan.gone)
        return self._report(len(operations), failures)

    # --- what is seen ---

    def chosen(self) -> dict[tuple[ListKey, Backend], int]:
        """How often each endpoint was chosen, since it came into its list; without those that never were."""
        with self._maps:
            members = self._installed.read(layout.MEMBERS) if self._installed.maps else {}
        names = dict(self._state.names)
        found = {}
        for key, value in members.items():
            number, backend = layout.unpack_member(key)
            if value != layout.NEVER and number in names:
                found[names[number], backend] = int.from_bytes(value, "little")
        return found

    def uses(self) -> Iterator[Use]:
        """The sockets of this node's processes that are connected to a service now."""
        names = dict(self._state.names)
        for inode, seen in self._ending.seen():
            yield Use(inode, seen, names.get(seen.bound.list))

    # --- the maps ---

    def _write(self, operations: Sequence[Operation]) -> list[Failure]:
        failures: dict[Any, Failure] = {}
        for (name, removal), group in groupby(operations, key=lambda o: (o.map, o.value is None)):
            part = list(group)
            if len(part) >= _MANY and not removal:
                try:
                    pairs = [(each.key, each.value or b"") for each in part]
                    syscall.update_batch(self._installed.maps[name], pairs)
                    continue
                except KernelError:
                    pass  # one by one, to see which
            for each in part:
                try:
                    self._write_one(each)
                except KernelError as error:
                    failures.setdefault(each.owner, Failure(*each.owner, error))
        return list(failures.values())

    def _write_one(self, each: Operation) -> None:
        if each.value is None:
            syscall.delete(self._installed.maps[each.map], each.key)
            return
        try:
            syscall.update(self._installed.maps[each.map], each.key, each.value)
        except KernelError as error:
            if error.errno != errno.E2BIG:
                raise
            with self._maps:
                self._installed.grow(each.map)
            syscall.update(self._installed.maps[each.map], each.key, each.value)

    def _report(self, operations: int, failures: list[Failure]) -> Report:
        if error := self._ending.take_error():
            failures.append(Failure(Table.BACKENDS, "sockets of endpoints that are gone", error))
        return Report(operations, tuple(failures))

    def _sockets_of(self, netns_fd: int) -> Sockets:
        with self._maps:
            users = self._installed.read(layout.UDP_USERS)
            return Sockets(netns_fd, self._installed.maps[layout.CONNECTED], users)

    def _cookie(self) -> int:
        kind = socket.AF_INET, socket.SOCK_DGRAM
        made = netns.socket_in(self._netns_fd, *kind) if self._netns_fd is not None else socket.socket(*kind)
        with made:
            return int.from_bytes(made.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")


def _difference(state: SocketState, there: Mapping[str, Mapping[bytes, bytes]]) -> list[Operation]:
    """What brings the maps to the state, in the order that is safe. How often an endpoint was chosen is no
    difference."""
    plan = Plan()
    for name, wanted in state.entries().items():
        found = there[name]
        for key, operation in wanted.items():
            same = key in found if name == layout.MEMBERS else found.get(key) == operation.value
            if not same:
                plan.operations.append(operation)
        for key in found.keys() - wanted.keys():
            plan.operations.append(Operation(name, key, None, (Table.BACKENDS, key.hex())))
    return plan.ordered()


def _rows(desired: Mapping[Table, Mapping[Any, Any]]) -> dict[str, int]:
    lists = desired.get(Table.BACKENDS, {})
    endpoints = sum(len(row.backends) for row in lists.values())
    return {
        layout.FRONTENDS: len(desired.get(Table.FRONTENDS, {})),
        layout.NODE_PORTS: len(desired.get(Table.NODE_PORTS, {})),
        layout.LISTS: len(lists),
        layout.BACKENDS: endpoints,
        layout.MEMBERS: endpoints,
    }
