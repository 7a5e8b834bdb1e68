"""corpus/cni.json: requests that a runtime, or somebody worse, may make, and the code of the answer.

An entry: `environment` over a good one's (null: not there), `config` or `stdin` (characters are bytes),
`repeat` [text, times] after it (or, with config, as the value of its key `x`); `code` of the error and what
the message `says`. Found by hand and by fuzzing; whatever once was answered wrongly belongs here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

GOOD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "hostile",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nowhere",
}


class Entry(NamedTuple):
    """environment: without what is taken away. dropped: names of what is."""

    name: str
    environment: dict[str, str]
    dropped: tuple[str, ...]
    stdin: bytes
    code: int
    says: str


def entries(data_dir: Path) -> list[Entry]:
    """data_dir: of host-local, where an entry names none."""
    found = json.loads((Path(__file__).parent / "corpus" / "cni.json").read_text())
    return [_entry(each, data_dir) for each in found]


def _entry(found: dict[str, Any], data_dir: Path) -> Entry:
    changes: dict[str, str | None] = found.get("environment", {})
    text, times = found.get("repeat", ("", 0))
    if "config" in found:
        config = found["config"]
        if isinstance(ipam := config.get("ipam"), dict):
            ipam.setdefault("dataDir", str(data_dir))
        if times:
            config["x"] = text * times
        stdin = json.dumps(config).encode()
    else:
        stdin = found["stdin"].encode("latin-1") + text.encode() * times
    environment = {k: v for k, v in (GOOD | changes).items() if v is not None}
    dropped = tuple(key for key, value in changes.items() if value is None)
    return Entry(found["name"], environment, dropped, stdin, found["code"], found.get("says", ""))
