"""Network configurations of plugins that podlane takes a node over from: set aside, and brought back.

A runtime takes the first file of its directory, by name, that ends in .conf, .conflist or .json. So one
that is renamed to end otherwise is out of its way, and is back when it has its name again.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final

from podlane.errors import ConfigError

_log = logging.getLogger(__name__)

SUFFIX: Final = ".podlane-aside"
ENDINGS: Final = (".conf", ".conflist", ".json")
TAKEN_FROM: Final = frozenset({"bridge", "flannel"})
"""Plugin types whose pods can go over (adoption.py). Another plugin's file stays, and is told of."""


def set_aside(directory: Path, own: str) -> list[Path]:
    """Files that would be taken before `own`, of plugins whose pods go over. Returns their old names.

    Raises ConfigError.
    """
    moved = []
    for path in before(directory, own):
        if first_type(_read(path)) in TAKEN_FROM:
            try:
                path.rename(path.with_name(path.name + SUFFIX))
            except OSError as error:
                raise ConfigError(f"{path} cannot be set aside: {error.strerror}") from None
            _log.info("%s is set aside as %s%s", path, path.name, SUFFIX)
            moved.append(path)
    return moved


def bring_back(directory: Path) -> list[Path]:
    """What was set aside has its name again, unless it is taken. Returns the names. Raises ConfigError."""
    back = []
    for path in sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else ():
        old = path.with_name(path.name.removesuffix(SUFFIX))
        if old.exists():
            continue
        try:
            path.rename(old)
        except OSError as error:
            raise ConfigError(f"{path} cannot be brought back: {error.strerror}") from None
        back.append(old)
    return back


def before(directory: Path, own: str) -> list[Path]:
    """Others' configurations that a runtime takes before the file `own`, in its order."""
    if not directory.is_dir():
        return []
    found = sorted(path for path in directory.iterdir() if path.suffix in ENDINGS)
    return [path for path in found if path.name < own]


def first_type(content: bytes) -> str:
    """The plugin that makes a network's links; "" for what is no network configuration."""
    try:
        document: Any = json.loads(content)
        if "plugins" in document:
            document = document["plugins"][0]
        kind = document["type"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return ""
    return kind if isinstance(kind, str) else ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
