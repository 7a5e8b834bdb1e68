"""Keeps this node's WireGuard as the tables say: process, key, peers, and the device's MTU and addresses."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

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
PATIENCE_S: Final = 0.5  # a node of the lesser key that is there begins at once


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
        self._silent_since_s: dict[str, float] = {}

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
        # Handshakes are for the next look, when the other side may have this node's key too.
        new = tuple(self._no_handshake(key) for key in change.added if key in written)
        return Report(len(written) + len(change.removed), (*failures, *new))

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
        return Report(operations + len(requests), (*failures, *self._shake_hands(peers)))

    def _shake_hands(self, peers: Mapping[str, uapi.Peer]) -> Iterator[Failure]:
        """Tunnels that do not stand yet are failures; of two nodes the one with the lesser key begins.

        Left to traffic, both may begin at once: each then answers the other, drops its own beginning and
        waits five seconds. And a beginning that came before the other knew this key is not repeated sooner,
        so the peer is configured anew, which forgets it.

        The other begins when nobody did for a while: it may have lost its tunnel alone. A node of the lesser
        key then still has one that stands, and would send into it for 15 seconds before it asks.
        """
        silent = [key for key in self._process.silent() if key in peers]
        now_s = time.monotonic()
        self._silent_since_s = {key: self._silent_since_s.get(key, now_s) for key in silent}
        mine = [key for key in silent if self.public < key or self._silent_since_s[key] < now_s - PATIENCE_S]
        if mine:
            wanted = {key: peers[key] for key in mine}
            # With a keepalive a peer is spoken to at once, whether a route leads to it or not.
            lively = {key: replace(each, keepalive_s=each.keepalive_s or 1) for key, each in wanted.items()}
            self._process.write(uapi.changes({}, mine) + uapi.changes(lively, ()))
            self._process.write(uapi.changes(wanted, ()))
        for key in silent:
            yield self._no_handshake(key)

    def _no_handshake(self, key: str) -> Failure:
        row: TunnelPeer = self._desired[Table.TUNNEL_PEERS][key]
        why = f"no handshake with {row.remote}:{row.port} yet: does UDP get there, has it this node's key?"
        return Failure(Table.TUNNEL_PEERS, key, KernelError.of(errno.ENOTCONN, f"peer {row.node}", why))

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
