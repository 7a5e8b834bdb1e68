"""The Containerfile's steps name what is there, and the bill of materials what is in the image."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts import sbom

ROOT = Path(__file__).parents[2]
STATUS = """Package: nftables
Status: install ok installed
Architecture: arm64
Version: 1.0.6-2+deb12u2
Depends: libc6 (>= 2.34), libnftables1 (= 1.0.6-2+deb12u2) | other

Package: libc6
Status: install ok installed
Architecture: arm64
Source: glibc (2.36)
Version: 1:2.36-9

Package: libnftables1
Status: install ok installed
Architecture: arm64
Source: nftables
Version: 1.0.6-2+deb12u2

Package: gone
Status: deinstall ok config-files
Architecture: arm64
Version: 1

Package: vim
Status: install ok installed
Architecture: all
Version: 2
"""


def test_every_pinned_requirement_is_a_component() -> None:
    text = (ROOT / "requirements.txt").read_text()
    pins = re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE | re.IGNORECASE)
    found = list(sbom.requirements(text))
    assert [(each["name"], each["version"]) for each in found] == pins
    assert len(pins) > 5
    assert text.count("--hash=sha256:") == sum(len(each["properties"]) for each in found)
    assert all(each["purl"].startswith("pkg:pypi/") for each in found)


def test_debian_packages_are_those_installed() -> None:
    every = {each["name"] for each in sbom.debian(STATUS)}
    assert every == {"nftables", "libc6", "libnftables1", "vim"}
    named = {each["name"]: each for each in sbom.debian(STATUS, ["nftables"])}
    assert named.keys() == {"nftables", "libc6", "libnftables1"}
    assert named["libc6"]["purl"] == "pkg:deb/debian/libc6@1%3A2.36-9?arch=arm64&distro=debian-12"
    assert named["libc6"]["properties"] == [{"name": "debian:source", "value": "glibc"}]


def test_the_bill_says_what_it_is_and_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "status").write_text(STATUS)

    def made() -> bytes:
        command = [sys.executable, str(ROOT / "scripts/sbom.py"), "--dpkg", str(tmp_path / "status")]
        return subprocess.run(command, capture_output=True, check=True).stdout

    text = made()
    assert made() == text
    bill: dict[str, Any] = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    refs = [each["bom-ref"] for each in bill["components"]]
    assert len(refs) == len(set(refs))
    assert bill["dependencies"][0]["dependsOn"] == refs


def test_what_the_image_is_made_of_is_there() -> None:
    text = (ROOT / "Containerfile").read_text().replace("\\\n", " ")
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert list(ROOT.glob(source)), source
    for script in (ROOT / "scripts").rglob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert script.stat().st_mode & 0o111, script
    assert re.search(r"^USER 65532", text, re.MULTILINE), "the controller is nobody's"
    assert re.search(r'^ENTRYPOINT \["/opt/podlane/bin/podlane"\]', text, re.MULTILINE)
