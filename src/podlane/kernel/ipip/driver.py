"""Keeps this node's IP in IP as the tables say: a device, the programs on it and on the uplink, their maps.

    out   a route leads to the device; the program on it writes the outer header and sends by the uplink
    in    the program on the uplink takes it off, and the packet goes on as received by the device

The device is an ifb, which asks for no neighbours; nothing is ever queued on it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any, Final

from podlane.compile.ipip import DEVICE
from podlane.compile.tables import Table, Tunnel, TunnelPeer
from podlane.delta import Delta
from podlane.kernel.bpf import syscall
from podlane.kernel.driver import Report
from podlane.kernel.ipip import programs
from podlane.kernel.ipip.programs import REMOTES, SENDERS, SETTINGS, Programs
from podlane.kernel.rtnl import Rtnl, links
from podlane.kernel.rtnl.links import Link
from podlane.kernel.rtnl.tunnels import repair

log = logging.getLogger(__name__)

TABLES: Final = (Table.TUNNELS, Table.TUNNEL_PEERS)
_KNOWN: Final = bytes(4)


class IpipDriver:
    """The Driver of kernel/driver.py for TABLES. Raises UnsupportedError where the kernel cannot."""

    def __init__(self) -> None:
        programs.require()
        self._rt = Rtnl()
        self._programs = Programs()
        self._desired: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def close(self) -> None:
        """What is attached stays."""
        self._programs.close()
        self._rt.close()

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        self._desired = {table: dict(desired.get(table, {})) for table in TABLES}
        return self._bring()

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        for table, change in changes.items():
            rows = self._desired[table]
            for key in change.removed:
                rows.pop(key, None)
            rows.update(change.added)
            rows.update({key: new for key, (_, new) in change.changed.items()})
        if changes.get(Table.TUNNELS) or not self._programs.maps:
            return self._bring()
        change = changes[Table.TUNNEL_PEERS]
        old = [*change.removed.values(), *(c.old for c in change.changed.values())]
        new = [*change.added.values(), *(c.new for c in change.changed.values())]
        operations = 0
        for name, of in ((SENDERS, _senders), (REMOTES, _remotes)):
            # What two nodes claim stays when one of them goes: wanted is what all rows say.
            wanted = of(self._desired[Table.TUNNEL_PEERS].values()) if old else of(new)
            there = of(old) | of(new)
            for key in there:
                operations += 1
                if key in wanted:
                    syscall.update(self._programs.maps[name], key, wanted[key])
                else:
                    syscall.delete(self._programs.maps[name], key)
        return Report(operations)

    def _bring(self) -> Report:
        row: Tunnel | None = self._desired[Table.TUNNELS].get(DEVICE)
        if row is None:
            return Report(_remove(self._rt, self._programs))
        uplink = self._rt.link_index(row.underlay)
        operations, device = self._device(row)
        places = {"encap": device.index, "decap": uplink}
        self._programs.open(places)
        settings = programs.settings(row.local, uplink, device.index, device.mac)
        rows = self._desired[Table.TUNNEL_PEERS].values()
        operations += self._fill(SETTINGS, {_KNOWN: settings})
        operations += self._fill(SENDERS, _senders(rows))
        operations += self._fill(REMOTES, _remotes(rows))
        operations += self._programs.attach(places)
        return Report(operations)

    def _device(self, row: Tunnel) -> tuple[int, Link]:
        present = self._rt.find_link(DEVICE)
        operations = 0
        if present is not None and present.kind != "ifb":
            self._rt.delete_link(DEVICE)
            present, operations = None, 1
        if present is None:
            self._rt.do(*links.create_ifb(DEVICE, mac=_mac(row), mtu_bytes=row.mtu_bytes))
            operations += 1
        present = self._rt.link(DEVICE)
        requests = repair(row, present, self._rt.addresses(present.index), _mac(row))
        if requests:
            self._rt.do(*requests)
            self._rt.settle(prefix.network_address for prefix in row.addresses)
            present = self._rt.link(DEVICE)
        return operations + len(requests), present

    def _fill(self, name: str, wanted: Mapping[bytes, bytes]) -> int:
        there, fd = self._programs.read(name), self._programs.maps[name]
        changed = {key: value for key, value in wanted.items() if there.get(key) != value}
        for key, value in changed.items():
            syscall.update(fd, key, value)
        stale = there.keys() - wanted.keys()
        for key in stale:
            syscall.delete(fd, key)
        return len(changed) + len(stale)


def remove() -> None:
    """Of a node whose backend is another one now."""
    with Rtnl() as rt:
        link = rt.find_link(DEVICE)
        if link is None or link.kind != "ifb":
            return
        there = Programs()
        try:
            _remove(rt, there)
        finally:
            there.close()
    log.info("the backend is no longer ipip: its device and programs are gone")


def _remove(rt: Rtnl, there: Programs) -> int:
    operations = there.detach()
    if rt.find_link(DEVICE) is not None:
        rt.delete_link(DEVICE, missing_ok=True)
        operations += 1
    return operations


def _senders(rows: Any) -> dict[bytes, bytes]:
    peers: list[TunnelPeer] = list(rows)
    return {peer.remote.packed: _KNOWN for peer in peers}


def _remotes(rows: Any) -> dict[bytes, bytes]:
    peers: list[TunnelPeer] = list(rows)
    return {programs.remote(pods): peer.remote.packed for peer in peers for pods in peer.pods}


def _mac(row: Tunnel) -> str:
    """Locally administered, and set from the beginning, so that no udev rule finds something to change."""
    return (b"\x02" + hashlib.sha256(b"podlane-ipip" + row.local.packed).digest()[:5]).hex(":")
