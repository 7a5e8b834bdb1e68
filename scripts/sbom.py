#!/usr/bin/env python3
"""A bill of materials (CycloneDX 1.5, JSON) of podlane: the pinned requirements, and Debian's packages.

    sbom.py [--requirements requirements.txt] [--dpkg /var/lib/dpkg/status] [--packages NAME...]

--packages: only these and what they depend on, as far as they are installed; without it every package of the
dpkg status file. The same input gives the same text: there is no time in it, and the serial number follows
from the content. Python's standard library alone, so that it runs in an image.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

ROOT = Path(__file__).resolve().parents[1]
Component = dict[str, Any]


def version() -> str:
    """Of podlane: from the source tree, or from where it is installed."""
    for path in (
        ROOT / "src/podlane/__init__.py",
        *Path("/opt/podlane").glob("lib/*/site-packages/podlane/__init__.py"),
    ):
        if path.exists():
            found = re.search(r'__version__ = "([^"]+)"', path.read_text())
            if found:
                return found[1]
    return "0"


def requirements(text: str) -> Iterator[Component]:
    """Of a lock with hashes, as `make lock` writes it."""
    for entry in re.split(r"\n(?=\S)", text.replace("\\\n", " ")):
        found = re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry)
        if not found:
            continue
        name, pinned = found[1], found[2]
        purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name).lower()}@{quote(pinned)}"
        # Of each file that may be installed: wheels of several machines, and the source.
        hashes = sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
        properties = [{"name": "podlane:file:sha256", "value": each} for each in hashes]
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": pinned,
            "purl": purl,
            "properties": properties,
        }


def debian(status: str, wanted: Iterable[str] = ()) -> Iterator[Component]:
    """Of dpkg's status file: what is installed; of `wanted` and what that needs, if anything is wanted."""
    installed: dict[str, dict[str, str]] = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            installed[fields["Package"]] = fields
    names = set(_needed(installed, wanted)) if wanted else set(installed)
    for name in sorted(names):
        fields = installed[name]
        architecture, pinned = fields["Architecture"], fields["Version"]
        purl = f"pkg:deb/debian/{name}@{quote(pinned, safe='')}?arch={architecture}&distro=debian-12"
        found: Component = {"type": "library", "bom-ref": purl, "name": name, "version": pinned, "purl": purl}
        source = fields.get("Source", name).split(" ")[0]
        yield found | {"properties": [{"name": "debian:source", "value": source}]}


def _needed(installed: dict[str, dict[str, str]], wanted: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name in seen or name not in installed:
            continue
        seen.add(name)
        yield name
        depends = ", ".join(installed[name].get(key, "") for key in ("Depends", "Pre-Depends"))
        waiting += re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9.+-]*)", depends)


def bill(components: list[Component]) -> dict[str, Any]:
    own = version()
    purl = f"pkg:generic/podlane@{own}"
    listed = hashlib.sha256(json.dumps([own, components]).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, listed)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": purl,
                "name": "podlane",
                "version": own,
                "purl": purl,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
        "dependencies": [{"ref": purl, "dependsOn": [each["bom-ref"] for each in components]}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    parser.add_argument("--dpkg", type=Path, default=Path("/var/lib/dpkg/status"))
    parser.add_argument("--packages", nargs="*", default=[])
    given = parser.parse_args()
    components = list(requirements(given.requirements.read_text()))
    components += debian(given.dpkg.read_text(), given.packages)
    json.dump(bill(components), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
