"""Keeps this node's WireGuard as the tables say: process, key, peers, and the device's MTU and addresses."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from podlane.compile.tables import Table, Tunnel, TunnelPeer
from podlane.compile.wireguard import DEVICE
from podlane.delta import Delta, merge
from podlane.engines.wireguard import keys, uapi
from podlane.engines.wireguard.process import WireguardProcess, require
from podlane.errors import KernelError
from podlane.kernel.driver import Failure, Report
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.tunnels import repair
from podlane.model.backends import wireguard_key
from podlane.model.config import NetworkConfig

log = logging.getLogger(__name__)

TABLES: Final = (Table.TUNNELS, Table.TUNNEL_PEERS)
KEY_FILE: Final = "wireguard.key"


class WireguardDriver:
    """The Driver of kernel/driver.py for TABLES. directory: of the process; state: where the key is kept.

    That the process died is told by its device, which goes with it: the kernel's notice of that brings a
    resync. Raises UnsupportedError where there is no wireguard-go.
    """

    def __init__(self, config: NetworkConfig, directory: Path, state: Path) -> None:
        require()
        self._private = keys.kept(state / KEY_FILE)
        self.public = keys.public(self._private)
        self._preshared = wireguard_key(config.wireguard.preshared_key) or bytes(32)
        self._keepalive_s = config.wireguard.keepalive_seconds
        self._process = WireguardProcess(directory, DEVICE)
        self._desired: dict[Table, dict[Any, Any]] = {table: {} for table in TABLES}
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
        written, failures = self._peers(
            {k: self._desired[Table.TUNNEL_PEERS][k] for k in (*change.added, *change.changed)}
        )
        self._process.write(uapi.changes(written, change.removed))
        return Report(len(written) + len(change.removed), failures)

    def _bring(self) -> Report:
        tunnel: Tunnel | None = self._desired[Table.TUNNELS].get(DEVICE)
        if tunnel is None:
            return Report(self._process.stop())
        operations = self._process.ensure()
        peers, failures = self._peers(self._desired[Table.TUNNEL_PEERS])
        lines = uapi.difference(uapi.Device(self._private, tunnel.port, peers), self._process.read())
        if lines:
            self._process.write(lines)
            operations += 1
        link = self._rt.link(DEVICE)
        requests = repair(tunnel, link, self._rt.addresses(link.index))
        if requests:
            self._rt.do(*requests)
            self._rt.settle(prefix.network_address for prefix in tunnel.addresses)
        return Report(operations + len(requests), failures)

    def _peers(self, rows: Mapping[str, TunnelPeer]) -> tuple[dict[str, uapi.Peer], tuple[Failure, ...]]:
        peers, failures = {}, []
        for key, row in rows.items():
            if key == self.public:
                why = f"{row.node} publishes this node's own key: remove {KEY_FILE} there, a new one is made"
                error = KernelError.of(errno.EADDRINUSE, f"peer {row.node}", why)
                failures.append(Failure(Table.TUNNEL_PEERS, key, error))
                continue
            allowed = uapi.order(row.pods + row.sources)
            peers[key] = uapi.Peer((row.remote, row.port), allowed, self._preshared, self._keepalive_s)
        return peers, tuple(failures)


def stop(directory: Path) -> None:
    """Of a node whose backend is another one now."""
    if WireguardProcess(directory, DEVICE).stop():
        log.info("the backend is no longer wireguard: its process has ended")
