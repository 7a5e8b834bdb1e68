"""deploy/systemd/: systemd knows every option, and podlane every flag."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from podlane.cli import agent, controller
from tests.netns.deployed import manifest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
NAMES = sorted(path.name for path in UNITS.iterdir())


def unit(name: str) -> str:
    return (UNITS / name).read_text().replace("\\\n", " ")


@pytest.mark.parametrize("name", NAMES)
def test_the_daemons_know_their_arguments(name: str) -> None:
    line = re.search(r"^ExecStart=(.*)$", unit(name), re.MULTILINE)
    assert line
    words = line[1].split()
    verb = "agent" if "agent" in words else "controller"
    command = {"agent": agent, "controller": controller}[verb].command
    command.make_context("podlane", words[words.index(verb) + 1 :])
    assert words[0] == "/usr/local/bin/podlane"  # where `make install` puts it


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
@pytest.mark.parametrize("name", NAMES)
def test_systemd_takes_them_without_a_word(tmp_path: Path, name: str) -> None:
    program = str(Path(sys.executable).with_name("podlane"))
    (tmp_path / name).write_text((UNITS / name).read_text().replace("/usr/local/bin/podlane", program))
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_agent_has_the_capabilities_of_the_daemon_set() -> None:
    pod = manifest("DaemonSet", "podlane-agent")["spec"]["template"]["spec"]
    given = pod["containers"][0]["securityContext"]["capabilities"]["add"]
    line = re.search(r"^CapabilityBoundingSet=(.*)$", unit("podlane-agent.service"), re.MULTILINE)
    assert line
    assert line[1].split() == [f"CAP_{name}" for name in given]


def test_what_carries_packets_outlives_the_agent() -> None:
    assert "KillMode=process" in unit("podlane-agent.service")
