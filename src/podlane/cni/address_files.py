"""host-local's leases on disk, in the reference plugin's own format, so that either can go on from the other.

    <dataDir>/<network>/
        10.22.0.5              whose it is: "<container id>\\r\\n<ifname>" (old ones: the container id alone)
        last_reserved_ip.0     the address given out last, of range set 0
        lock                   flock(2) of whoever reads or writes

A file appears whole, by link(2), or not at all: a writer that is killed leaves no lease without an owner.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from podlane.cni.protocol import IO_FAILURE
from podlane.errors import CniError
from podlane.model.addresses import Address

DATA_DIR: Final = "/var/lib/cni/networks"
_LAST: Final = "last_reserved_ip."
_TEMPORARY: Final = ".podlane-"
_LEASE_BYTES: Final = 1 << 16


class Holder(tuple[str, str]):
    """(container id, ifname); ifname is "" in files of old."""

    __slots__ = ()

    def is_of(self, container_id: str, ifname: str) -> bool:
        return self[0] == container_id and self[1] in ("", ifname)


class AddressFiles:
    """The leases of one network. Everything is done while `locked`. Blocking. Raises CniError (code 5).

    What was read is kept while nobody else changes the directory: a lease costs what it costs, however
    many there are. That a change may hide within a tick of the file system's clock does no harm: a file
    that is there already is never taken, and who finds nothing to give back looks again.
    """

    def __init__(self, data_dir: Path, network: str) -> None:
        self.path = data_dir / network
        self._held: dict[Address, Holder] = {}
        self._by_container: dict[str, set[Address]] = {}
        self._stamp: tuple[int, int] | None = None

    @contextmanager
    def locked(self, *, make: bool = True) -> Iterator[bool]:
        """Alone with the directory. make: it is made if it is not there; else False says that it is not."""
        with self._told():
            try:
                lock = self._open_lock()
            except FileNotFoundError:
                if not make:
                    yield False
                    return
                self.path.mkdir(parents=True, exist_ok=True, mode=0o755)
                lock = self._open_lock()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield True
            finally:
                os.close(lock)

    def _open_lock(self) -> int:
        return os.open(f"{self.path}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def probe(self) -> None:
        """The directory can be made and written."""
        with self.locked():
            pass

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"leases in {self.path}: {error.strerror or error}"
            raise CniError(IO_FAILURE, what, "" if error.filename is None else str(error.filename)) from None

    def holders(self) -> Mapping[Address, Holder]:
        """Every lease."""
        if self._stamp != self._stamp_now():
            self._read_all()
        return self._held

    def of(self, container_id: str, ifname: str) -> list[Address]:
        """What one attachment has."""
        held = self.holders()
        return [a for a in self._by_container.get(container_id, ()) if held[a].is_of(container_id, ifname)]

    def forget(self) -> None:
        """Everything is read again."""
        self._stamp = None

    def last(self, range_set: int) -> Address | None:
        try:
            return ipaddress.ip_address(self._read(f"{_LAST}{range_set}").strip())
        except (FileNotFoundError, ValueError):
            return None

    def take(self, address: Address, container_id: str, ifname: str, range_set: int) -> bool:
        """False if somebody has it."""
        temporary = f"{self.path}/{_TEMPORARY}{os.getpid()}"
        try:
            self._write(temporary, f"{container_id}\r\n{ifname}", os.O_TRUNC)
            try:
                os.link(temporary, f"{self.path}/{address}")
            except FileExistsError:
                self.forget()
                return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        self._add(address, Holder((container_id, ifname)))
        try:
            # Only a hint of where to go on: written in place, which a file system does at once.
            self._write(f"{self.path}/{_LAST}{range_set}", str(address), 0)
        except BaseException:
            self.give_back(address)
            raise
        self._stamp = self._stamp_now()
        return True

    def give_back(self, address: Address) -> None:
        self._unlink(str(address))
        holder = self._held.pop(address, None)
        if holder is not None:
            self._by_container[holder[0]].discard(address)
            if not self._by_container[holder[0]]:
                del self._by_container[holder[0]]
        self._stamp = self._stamp_now()

    def _read_all(self) -> None:
        self._held.clear()
        self._by_container.clear()
        with os.scandir(self.path) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            try:
                address = ipaddress.ip_address(name)
            except ValueError:
                if name.startswith(_TEMPORARY):
                    self._unlink(name)  # of a writer that was killed: the lock is ours
                continue
            container_id, _, ifname = self._read(name).partition("\n")
            self._add(address, Holder((container_id.strip(), ifname.strip())))
        self._stamp = self._stamp_now()

    def _add(self, address: Address, holder: Holder) -> None:
        self._held[address] = holder
        self._by_container.setdefault(holder[0], set()).add(address)

    def _stamp_now(self) -> tuple[int, int]:
        """Changes when a file of the directory comes or goes."""
        status = os.stat(self.path)
        return status.st_ino, status.st_mtime_ns

    def _write(self, path: str, text: str, flags: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
        try:
            data = text.encode()
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            os.ftruncate(fd, len(data))
        finally:
            os.close(fd)

    def _read(self, name: str) -> str:
        fd = os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(fd, _LEASE_BYTES).decode(errors="replace")
        finally:
            os.close(fd)

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}/{name}")
