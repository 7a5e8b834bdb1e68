"""The archive of a bug report: text files, each without secrets and of bounded size, and a manifest.

What a collector raises is noted in the manifest, and the others go on: a report is wanted most when something
is broken. The file is made beside its place and moved there when it is whole; only its owner may read it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec
from msgspec import Struct

from podlane import __version__, redaction
from podlane.errors import LabError, PodlaneError

API_VERSION: Final = "podlane.dev/v1alpha1"
MOST_FILE_BYTES: Final = 8 << 20
MOST_BYTES: Final = 64 << 20

Collector = Callable[[], Any]
"""Returns text, or what is written as JSON. Nothing is written for None."""


class Entry(Struct, frozen=True, omit_defaults=True):
    """size: in bytes, as written. cut: how many were left out of its middle. error: why there is no more."""

    name: str
    size: int = 0
    seconds: float = 0.0
    cut: int = 0
    error: str = ""


class Archive:
    """path: of the .tar.gz. known: secrets by value. most_bytes: of all files together, before compression.

    progress(name): called before each collector. A context manager; on an exception nothing is left.
    """

    def __init__(
        self,
        path: Path,
        known: Iterable[str] = (),
        *,
        most_bytes: int = MOST_BYTES,
        most_file_bytes: int = MOST_FILE_BYTES,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self._known = sorted({each for each in known if each}, key=len, reverse=True)
        self._left, self._most_file_bytes, self._progress = most_bytes, most_file_bytes, progress
        self._top = path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")
        self._part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LabError(f"{path}: {error.strerror}") from None
        self._file = os.fdopen(descriptor, "wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w:gz")  # noqa: SIM115

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write("MANIFEST.json", self._manifest().encode())
            self._tar.close()
            self._file.close()
            if kind is None:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)

    @property
    def failed(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.error]

    def add(self, name: str, collect: Collector) -> None:
        """Runs collect and writes what it returns, without secrets."""
        self._progress(name)
        began_s = time.monotonic()
        try:
            found = collect()
        except (PodlaneError, OSError, ValueError, LookupError, subprocess.SubprocessError) as error:
            self._note(name, began_s, error=redaction.text(f"{type(error).__name__}: {error}", self._known))
            return
        if found is None:
            return
        data = self._text(found).encode("utf-8", "replace")
        room = max(0, min(self._most_file_bytes, self._left))
        cut = max(0, len(data) - room)
        if cut:
            half = room // 2
            gap = f"\n[… {cut} bytes left out …]\n".encode()
            data = (data[:half] + gap + data[-half:]) if half else b""
        if not data and cut:
            self._note(name, began_s, cut=cut, error="the report is as large as it may be")
            return
        self._left -= len(data)
        self._write(name, data)
        self._note(name, began_s, size=len(data), cut=cut)

    def _text(self, found: Any) -> str:
        if isinstance(found, bytes):
            found = found.decode("utf-8", "replace")
        if isinstance(found, str):
            return redaction.text(found, self._known)
        plain = redaction.value(msgspec.to_builtins(found, str_keys=True), self._known)
        return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"

    def _note(self, name: str, began_s: float, *, size: int = 0, cut: int = 0, error: str = "") -> None:
        seconds = round(time.monotonic() - began_s, 3)
        self.entries.append(Entry(name, size, seconds, cut, error[:2000]))

    def _manifest(self) -> str:
        head = {
            "apiVersion": API_VERSION,
            "kind": "BugReport",
            "version": __version__,
            "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": msgspec.to_builtins(self.entries),
        }
        return json.dumps(head, indent=1) + "\n"

    def _write(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(f"{self._top}/{name}")
        info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
        self._tar.addfile(info, io.BytesIO(data))
