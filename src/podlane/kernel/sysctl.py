"""Settings of a network namespace (/proc/sys/net), and what the node's were before they were changed.

Where /proc/sys is read-only, as in a container, the machine's own is mounted somewhere else (`locate`): whose
settings a file shows is decided by the thread that opens it, not by the mount.

What is written for the node, and not for a pod, goes through `write_node`. Told to keep a journal, it notes
first what was there, so that an uninstall can put it back (`Journal.restore`).
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Final

import msgspec

from podlane.errors import KernelError

log = logging.getLogger(__name__)

JOURNAL: Final = "sysctls.json"
_BYTES: Final = 1 << 12

# Of the process: so is where it runs, and the node it runs for.
_root = Path("/proc/sys")
_journal: Journal | None = None


class Change(msgspec.Struct, frozen=True):
    was: str
    now: str


class _File(msgspec.Struct):
    boot: str
    settings: dict[str, Change] = {}


class Journal:
    """Of one boot: after a reboot every setting is what the machine makes it.

    A file that cannot be written is told; its settings will then stay as they are.
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path, self._lock = path, threading.Lock()
        self._file = _File(boot_id)
        try:
            found = msgspec.json.decode(path.read_bytes(), type=_File)
        except (OSError, msgspec.MsgspecError):
            return
        if found.boot == boot_id:
            self._file = found

    def note(self, name: str, was: str, now: str) -> None:
        with self._lock:
            known = self._file.settings.get(name)
            change = Change(known.was if known else was, now)
            if change == known:
                return
            self._file.settings[name] = change
            temporary = self._path.with_name(f".{JOURNAL}.{os.getpid()}")
            try:
                temporary.write_bytes(msgspec.json.encode(self._file))
                temporary.replace(self._path)
            except OSError as error:
                log.warning("%s: %s", self._path, error.strerror)

    def restore(self) -> list[tuple[str, bool]]:
        """Puts back what is still as it was written. Returns what was done, and what was not and why.

        Raises KernelError.
        """
        told: list[tuple[str, bool]] = []
        for name, change in reversed(self._file.settings.items()):
            present = read(name)
            dotted = name.replace("/", ".")
            if present is None:
                continue
            if present != change.now:
                why = f"sysctl {dotted}={present} is not what podlane wrote ({change.now})"
                told.append((why, False))
            elif present != change.was:
                write(name, change.was)
                told.append((f"sysctl {dotted}={change.now}, which was {change.was}", True))
        return told


def locate(root: Path | str) -> None:
    """The whole process finds the settings there from now on. As /proc/sys has them."""
    global _root
    _root = Path(root)


def keep_journal(path: Path, boot_id: str) -> None:
    global _journal
    _journal = Journal(path, boot_id)


def read(name: str) -> str | None:
    """Of the calling thread's namespace; None where there is no such name. name: as net/ipv4/ip_forward."""
    try:
        file = os.open(_root / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, _BYTES).decode().strip()
    finally:
        os.close(file)


def write(name: str, value: str) -> None:
    """Of the calling thread's namespace. Raises KernelError (KernelNotFoundError for none of that name)."""
    try:
        file = os.open(_root / name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            os.write(file, value.encode())
        finally:
            os.close(file)
    except OSError as error:
        raise KernelError.of(error.errno or 0, f"sysctl {name}={value}") from None


def write_node(name: str, value: str) -> None:
    """The same for the node itself, with a note of what was there. A value that is there is not written."""
    was = read(name)
    if was == value:
        return
    if _journal is not None and was is not None:
        _journal.note(name, was, value)
    write(name, value)
