"""Flannel's subnet.env, as the tables say (backend.flannelCompat): for plugins and programs that read it."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MARK: Final = "subnet-file"
"""In the agent's run directory: the path of the file that was written, for who removes it."""


class SubnetFile:
    """path: "" for none; a relative one begins at run_dir. complaint: why it is not as it should be, "" if it
    is."""

    def __init__(self, path: str, run_dir: Path) -> None:
        self._path, self._mark = run_dir / path if path else None, run_dir / MARK
        self._written = ""
        self.complaint = ""

    def write(self, text: str) -> None:
        """In one step, and only where something else is there."""
        if self._path is None or (text == self._written and not self.complaint):
            return
        try:
            if not self._path.exists() or self._path.read_text() != text:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
                temporary.write_text(text)
                temporary.chmod(0o644)
                temporary.replace(self._path)
            self._mark.write_text(f"{self._path}\n")
        except OSError as error:
            complaint = f"flannel.subnetFile: {error}"
            if complaint != self.complaint:
                log.warning("%s", complaint)
            self.complaint = complaint
        else:
            self._written, self.complaint = text, ""


def remove(run_dir: Path) -> Path | None:
    """Takes away what an agent with this run directory wrote; returns its path, None if there was nothing."""
    mark = run_dir / MARK
    with contextlib.suppress(OSError):
        path = Path(mark.read_text().strip())
        path.unlink()
        mark.unlink()
        return path
    return None
