"""Keeps this node's UDP proxy as the tables say: process, peers, and the device's MTU and addresses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from podlane.compile.tables import Table, Tunnel, TunnelPeer
from podlane.compile.udp import DEVICE
from podlane.delta import Delta, merge
from podlane.engines.ending import EndWatch
from podlane.engines.udp.control import PeerSetting, Request, Settings
from podlane.engines.udp.process import UdpProcess, require
from podlane.errors import KernelNotFoundError
from podlane.kernel.driver import Report
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.tunnels import repair

log = logging.getLogger(__name__)

TABLES: Final = (Table.TUNNELS, Table.TUNNEL_PEERS)


class UdpDriver:
    """The Driver of kernel/driver.py for TABLES. directory: of the process.

    died(): called on a thread of its own when the process ends. Raises UnsupportedError without TUN.
    """

    def __init__(self, directory: Path, died: Callable[[], None] = lambda: None) -> None:
        require()
        self.died = died
        self._process = UdpProcess(directory, DEVICE)
        self._desired: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}
        self._end = EndWatch("udp proxy", self._ended)
        self._rt = Rtnl()

    @property
    def tables(self) -> tuple[Table, ...]:
        return TABLES

    def close(self) -> None:
        """What runs stays."""
        self._rt.close()

    def resync(self, desired: Mapping[Table, Mapping[Any, Any]]) -> Report:
        self._desired = {table: dict(desired.get(table, {})) for table in TABLES}
        return self._bring()

    def apply(self, changes: Mapping[Table, Delta[Any, Any]]) -> Report:
        for table, change in changes.items():
            merge(self._desired[table], change)
        if changes.get(Table.TUNNELS) or not self._process.pid:
            return self._bring()
        change = changes[Table.TUNNEL_PEERS]
        rows = self._desired[Table.TUNNEL_PEERS]
        peers = {key: setting(rows[key]) for key in (*change.added, *change.changed)}
        gone = tuple(change.removed)
        self._process.ask(Request(peers=peers, gone=gone))
        return Report(len(peers) + len(gone))

    def counters(self) -> dict[str, int]:
        """What the proxy counted since it began. Raises KernelError."""
        return self._process.ask(Request()).counters

    def _bring(self) -> Report:
        tunnel: Tunnel | None = self._desired[Table.TUNNELS].get(DEVICE)
        if tunnel is None:
            self._end.forget()
            return Report(self._process.stop() + _delete(self._rt))
        operations = self._process.ensure()
        self._end.watch(self._process.pid)
        wanted = settings(tunnel, self._desired[Table.TUNNEL_PEERS])
        if self._process.ask(Request()).settings != wanted:
            self._process.ask(Request(wanted))
            operations += 1
        link = self._rt.link(DEVICE)
        requests = repair(tunnel, link, self._rt.addresses(link.index))
        if requests:
            self._rt.do(*requests)
            self._rt.settle(prefix.network_address for prefix in tunnel.addresses)
        return Report(operations + len(requests))

    def _ended(self) -> None:
        if self._desired[Table.TUNNELS]:
            log.warning("the UDP proxy has ended; it is started anew")
            self.died()


def settings(tunnel: Tunnel, peers: Mapping[str, TunnelPeer]) -> Settings:
    return Settings(
        local=str(tunnel.local),
        port=tunnel.port,
        mtu_bytes=tunnel.mtu_bytes,
        own=tuple(str(prefix.network_address) for prefix in tunnel.addresses),
        peers={key: setting(row) for key, row in peers.items()},
    )


def setting(row: TunnelPeer) -> PeerSetting:
    return PeerSetting(str(row.remote), row.port, tuple(map(str, row.pods)), tuple(map(str, row.sources)))


def _delete(rt: Rtnl) -> int:
    try:
        rt.delete_link(DEVICE)
    except KernelNotFoundError:
        return 0
    return 1


def stop(directory: Path) -> None:
    """Of a node whose backend is another one now."""
    ended = UdpProcess(directory, DEVICE).stop()
    with Rtnl() as rt:
        if _delete(rt) or ended:
            log.info("the backend is no longer udp: its proxy and its device are gone")
