"""host-local's leases on disk, in the reference plugin's own format, so that either can go on from the other.

    <dataDir>/<network>/
        10.22.0.5              whose it is: "<container id>\\r\\n<ifname>" (old ones: the container id alone)
        last_reserved_ip.0     the address given out last, of range set 0
        lock                   flock(2) of whoever reads or writes

A file appears whole, by link(2), or not at all: a writer that is killed leaves no lease without an owner.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from podlane.cni.protocol import IO_FAILURE
from podlane.errors import CniError
from podlane.model.addresses import Address

DATA_DIR: Final = "/var/lib/cni/networks"
_LAST: Final = "last_reserved_ip."
_TEMPORARY: Final = ".podlane-"


class Holder(tuple[str, str]):
    """(container id, ifname); ifname is "" in files of old."""

    __slots__ = ()

    def is_of(self, container_id: str, ifname: str) -> bool:
        return self[0] == container_id and self[1] in ("", ifname)


class AddressFiles:
    """The leases of one network. Everything is done while `locked`. Blocking. Raises CniError (code 5)."""

    def __init__(self, data_dir: Path, network: str) -> None:
        self.path = data_dir / network

    @contextmanager
    def locked(self, *, make: bool = True) -> Iterator[bool]:
        """Alone with the directory. make: it is made if it is not there; else False says that it is not."""
        with self._told():
            if make:
                self.path.mkdir(parents=True, exist_ok=True, mode=0o755)
            elif not self.path.is_dir():
                yield False
                return
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield True
            finally:
                os.close(lock)

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

    def holders(self) -> dict[Address, Holder]:
        """Every lease."""
        found: dict[Address, Holder] = {}
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
            found[address] = Holder((container_id.strip(), ifname.strip()))
        return found

    def last(self, range_set: int) -> Address | None:
        try:
            return ipaddress.ip_address(self._read(f"{_LAST}{range_set}").strip())
        except (FileNotFoundError, ValueError):
            return None

    def take(self, address: Address, container_id: str, ifname: str, range_set: int) -> bool:
        """False if somebody has it."""
        temporary = self.path / f"{_TEMPORARY}{os.getpid()}"
        try:
            self._write(temporary, f"{container_id}\r\n{ifname}")
            try:
                os.link(temporary, self.path / str(address))
            except FileExistsError:
                return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        try:
            self._write(temporary, str(address))
            temporary.replace(self.path / f"{_LAST}{range_set}")
        except BaseException:
            self.give_back(address)
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            raise
        return True

    def give_back(self, address: Address) -> None:
        self._unlink(str(address))

    def _write(self, path: Path, text: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", newline="") as file:
            file.write(text)

    def _read(self, name: str) -> str:
        return (self.path / name).read_bytes().decode(errors="replace")

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path / name)
