"""Which attachment holds which pod addresses: a small SQLite database that outlives the agent.

An address has one holder at a time: the table says so (PRIMARY KEY), not the code. Addresses are given
out in turn, so that a freed one rests as long as possible before the next pod gets it. Network
namespaces do not survive a reboot, so leases of an earlier boot are dropped when the database is opened.

Not given out: the first two addresses of a pool (the tunnel's end, and the one that tools take for the
gateway), and the last of an IPv4 pool (its directed broadcast).
"""

from __future__ import annotations

import ipaddress
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from podlane.cni.protocol import INVALID_CONFIG, IO_FAILURE, TRY_AGAIN_LATER
from podlane.errors import CniError, PodlaneError
from podlane.model.addresses import Address, Prefix
from podlane.model.local import Attachment

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS lease (
    container_id TEXT NOT NULL, ifname TEXT NOT NULL, network TEXT NOT NULL, device TEXT NOT NULL,
    mac TEXT NOT NULL, pod_namespace TEXT NOT NULL, pod_name TEXT NOT NULL, boot_id TEXT NOT NULL,
    PRIMARY KEY (container_id, ifname)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS address (
    version INTEGER NOT NULL, value BLOB NOT NULL, place INTEGER NOT NULL,
    container_id TEXT NOT NULL, ifname TEXT NOT NULL,
    PRIMARY KEY (version, value),
    FOREIGN KEY (container_id, ifname) REFERENCES lease ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS address_holder ON address (container_id, ifname);
CREATE TABLE IF NOT EXISTS last_given (pool TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
# Columns that a database of an earlier version lacks.
_LATER: Final = {"bridge": "TEXT NOT NULL DEFAULT ''"}


class Lease(Struct, frozen=True):
    """network: the name of the CNI network it was made for. addresses: in the order of the pools.
    bridge: the bridge its link is a port of, "" for none.
    """

    container_id: str
    ifname: str
    network: str
    device: str
    mac: str
    addresses: tuple[Address, ...] = ()
    pod_namespace: str = ""
    pod_name: str = ""
    bridge: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.container_id, self.ifname

    @property
    def attachment(self) -> Attachment:
        return Attachment(
            self.container_id,
            self.ifname,
            self.device,
            self.mac,
            self.addresses,
            self.pod_namespace,
            self.pod_name,
            self.bridge,
        )


def given_out(pool: Prefix) -> tuple[int, int]:
    """The first and the last address of pool that pods get, as numbers. Raises CniError if there is none."""
    first, last = int(pool.network_address) + 2, int(pool.broadcast_address) - (pool.version == 4)
    if first > last:
        raise CniError(
            TRY_AGAIN_LATER, f"pod CIDR {pool} is too small: use /{pool.max_prefixlen - 2} or wider"
        )
    return first, last


class Leases:
    """The database at path, made if it is not there. boot_id: of this boot.

    in_use(address): somebody else on this node has it, so that it is passed over.
    Safe to use from several threads; every change is one transaction. Raises PodlaneError if the file
    cannot be used.
    """

    def __init__(
        self, path: Path | str, boot_id: str, in_use: Callable[[Address], bool] = lambda _: False
    ) -> None:
        self._boot_id, self._in_use = boot_id, in_use
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        except sqlite3.Error as error:
            raise PodlaneError(f"leases {path}: {error}") from None
        try:
            # A crash of the agent loses nothing with NORMAL; a crash of the machine ends the boot anyway.
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)
            present = {row[1] for row in self._db.execute("PRAGMA table_info(lease)")}
            for column in _LATER.keys() - present:
                self._db.execute(f"ALTER TABLE lease ADD COLUMN {column} {_LATER[column]}")
            self._db.execute("PRAGMA foreign_keys=ON")
            self._db.execute("DELETE FROM lease WHERE boot_id != ?", (boot_id,))
        except sqlite3.Error as error:
            self._db.close()
            raise PodlaneError(f"leases {path}: {error}; move the file away to begin anew") from None

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def get(self, container_id: str, ifname: str) -> Lease | None:
        found = self._read("WHERE container_id = ? AND ifname = ?", (container_id, ifname))
        return found[0] if found else None

    def all(self) -> list[Lease]:
        """In the order of their keys."""
        return self._read("", ())

    def used(self, pool: Prefix) -> int:
        """How many addresses of pool are given out."""
        first, last = (int(end).to_bytes(pool.max_prefixlen // 8, "big") for end in (pool[0], pool[-1]))
        with self._lock:
            row = self._db.execute(
                "SELECT COUNT(*) FROM address WHERE version = ? AND value BETWEEN ? AND ?",
                (pool.version, first, last),
            ).fetchone()
        return int(row[0])

    def take(self, lease: Lease, pools: Sequence[Prefix]) -> Lease:
        """Gives lease one address of each pool: one of those it names, if it names any. Returns it with them.

        Raises CniError when a pool has none left, an address it names is not to be had, or the attachment
        has a lease already.
        """
        strange = [str(wish) for wish in lease.addresses if not any(wish in pool for pool in pools)]
        if strange:
            there = ", ".join(map(str, pools))
            raise CniError(INVALID_CONFIG, f"requested address {', '.join(strange)} is in none of {there}")
        with self._transaction():
            wishes = [next((wish for wish in lease.addresses if wish in pool), None) for pool in pools]
            addresses = tuple(
                self._next(pool) if wish is None else self._named(pool, wish)
                for pool, wish in zip(pools, wishes, strict=True)
            )
            try:
                self._insert(lease)
            except sqlite3.IntegrityError:
                what = f"container {lease.container_id} has a lease for {lease.ifname} already"
                raise CniError(TRY_AGAIN_LATER, what) from None
            for place, (pool, address) in enumerate(zip(pools, addresses, strict=True)):
                self._put_address(lease, address, place)
                self._db.execute(
                    "INSERT OR REPLACE INTO last_given VALUES (?, ?)", (str(pool), address.packed)
                )
        return msgspec.structs.replace(lease, addresses=addresses)

    def adopt(self, lease: Lease) -> bool:
        """Takes in an attachment that another plugin made, with the addresses it has.

        False if the attachment, or one of its addresses, is known already: then nothing has changed.
        """
        with self._transaction():
            known = self._db.execute(
                "SELECT 1 FROM lease WHERE container_id = ? AND ifname = ?", lease.key
            ).fetchone()
            if known or any(map(self._holder, lease.addresses)):
                return False
            self._insert(lease)
            for place, address in enumerate(lease.addresses):
                self._put_address(lease, address, place)
        return True

    def release(self, container_id: str, ifname: str) -> None:
        """No error if there is no such lease."""
        with self._transaction():
            self._db.execute(
                "DELETE FROM lease WHERE container_id = ? AND ifname = ?", (container_id, ifname)
            )

    def _insert(self, lease: Lease) -> None:
        row = (lease.container_id, lease.ifname, lease.network, lease.device, lease.mac)
        self._db.execute(
            "INSERT INTO lease (container_id, ifname, network, device, mac, pod_namespace, pod_name,"
            " bridge, boot_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, lease.pod_namespace, lease.pod_name, lease.bridge, self._boot_id),
        )

    def _put_address(self, lease: Lease, address: Address, place: int) -> None:
        row = (address.version, address.packed, place, *lease.key)
        self._db.execute("INSERT INTO address VALUES (?, ?, ?, ?, ?)", row)

    def _holder(self, address: Address) -> str:
        """The container that has it, "" for none."""
        held = self._db.execute(
            "SELECT container_id FROM address WHERE version = ? AND value = ?",
            (address.version, address.packed),
        ).fetchone()
        return held[0] if held else ""

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Raises CniError (IO_FAILURE) for what the file system refuses; then nothing has changed."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise CniError(IO_FAILURE, f"leases: {error}") from None
                raise

    def _named(self, pool: Prefix, wish: Address) -> Address:
        first, last = given_out(pool)
        if not first <= int(wish) <= last:
            raise CniError(
                INVALID_CONFIG, f"requested address {wish} is not for pods: {pool} has it for itself"
            )
        holder = self._holder(wish)
        if holder or self._in_use(wish):
            whose = f"container {holder}" if holder else "a pod of another plugin"
            raise CniError(TRY_AGAIN_LATER, f"requested address {wish} is in use by {whose}")
        return wish

    def _next(self, pool: Prefix) -> Address:
        """The first free address after the one given out last, around the end if need be."""
        first, last = given_out(pool)
        row = self._db.execute("SELECT value FROM last_given WHERE pool = ?", (str(pool),)).fetchone()
        after = int.from_bytes(row[0], "big") if row else last
        start = after + 1 if first <= after < last else first
        for low, high in ((start, last), (first, start - 1)):
            while (free := self._gap(pool, low, high)) is not None:
                address: Address = pool[free - int(pool.network_address)]
                if not self._in_use(address):
                    return address
                low = free + 1
        raise CniError(
            TRY_AGAIN_LATER,
            f"no address left in {pool}: all {last - first + 1} are in use",
            "delete pods of this node, or give nodes larger pod CIDRs",
        )

    def _gap(self, pool: Prefix, low: int, high: int) -> int | None:
        """The first address in low..high without a holder."""
        size, expected = pool.max_prefixlen // 8, low
        held = self._db.execute(
            "SELECT value FROM address WHERE version = ? AND value BETWEEN ? AND ? ORDER BY value",
            (pool.version, low.to_bytes(size, "big"), high.to_bytes(size, "big")),
        )
        for (value,) in held:
            if int.from_bytes(value, "big") != expected:
                break
            expected += 1
        return expected if expected <= high else None

    def _read(self, where: str, values: tuple[str, ...]) -> list[Lease]:
        columns = "container_id, ifname, network, device, mac, pod_namespace, pod_name, bridge"
        with self._lock:
            rows = self._db.execute(
                f"SELECT {columns} FROM lease {where} ORDER BY container_id, ifname", values
            ).fetchall()
            held = self._db.execute(
                f"SELECT container_id, ifname, value FROM address {where} ORDER BY place", values
            ).fetchall()
        addresses: dict[tuple[str, str], list[Address]] = {}
        for container_id, ifname, value in held:
            addresses.setdefault((container_id, ifname), []).append(ipaddress.ip_address(value))
        return [
            Lease(
                container_id,
                ifname,
                network,
                device,
                mac,
                tuple(addresses.get((container_id, ifname), ())),
                pod_namespace,
                pod_name,
                bridge,
            )
            for container_id, ifname, network, device, mac, pod_namespace, pod_name, bridge in rows
        ]
