"""Whole labs, brought up by the command as a user would. Root is required."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PODLANE = Path(sys.executable).with_name("podlane")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.cluster)


@cache
def kubectl_minor() -> int:
    """The minor version of the machine's kubectl: Debian 12 has 1.20, which knows less."""
    version = json.loads(run("kubectl", "version", "--client", "-o", "json").stdout)
    return int("".join(c for c in version["clientVersion"]["minor"] if c.isdigit()))


class Lab:
    """A lab under test; every name is this test run's own, so that others may be beside it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def podlane(
        self, *arguments: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return run(str(PODLANE), *arguments, check=check, **options)

    def up(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.podlane("up", self.name, *arguments, check=check, **options)

    def down(self) -> None:
        self.podlane("down", self.name)

    @property
    def kubeconfig(self) -> str:
        return self.podlane("kubeconfig", self.name).stdout.strip()

    def kubectl(
        self, *arguments: str, check: bool = True, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return run("kubectl", "--kubeconfig", self.kubeconfig, *arguments, check=check, **options)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)

    def exec(self, pod: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.podlane("exec", "--lab", self.name, pod, "--", *command, check=check)

    def outside(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.podlane("outside", "--lab", self.name, "--", *command, check=check)

    def node(self, node: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.podlane("node", "--lab", self.name, node, "--", *command, check=check)

    def running_pid(self, service: str) -> int:
        """0 while the supervisor waits to start it anew."""
        from podlane.lab.paths import LabPaths
        from podlane.lab.supervisor.client import Supervisor

        with Supervisor(LabPaths(self.name).supervisor_socket) as supervisor:
            running = [
                p
                for p in supervisor.list()
                if (p.kind, p.name) == ("service", service) and p.exit_status is None
            ]
        assert len(running) <= 1, running
        return running[0].pid if running else 0

    def check(self) -> dict[str, Any]:
        """`podlane check -o json`, with a reading of what failed when something did."""
        answer = self.podlane("check", self.name, "-o", "json", check=False)
        matrix: dict[str, Any] = json.loads(answer.stdout)
        failed = [c for c in matrix["checks"] if not c["ok"]]
        assert not failed, failed[:5]
        assert matrix["passed"] == len(matrix["checks"]) > 0
        assert answer.returncode == 0
        return matrix


def run(
    *command: str, check: bool = True, timeout: float = 150.0, **options: Any
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=timeout, check=False, **options
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def traces_of(name: str) -> list[str]:
    """Everything of lab `name` that can still be found on this machine."""
    found = [
        str(p) for root in ("/run/podlane/labs", "/var/lib/podlane/labs") if (p := Path(root, name)).exists()
    ]
    found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"**/podlane/{name}")]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/labs/{name}/" in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not zombie and f"/podlane/{name}/" in (process / "cgroup").read_text() + "/":
                found.append(f"process {process.name}")
        except OSError:
            continue
    return found


def until(condition: Any, timeout_s: float = 20.0) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline_s, "it did not come to be"
        time.sleep(0.05)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A name for a lab of this test alone; it is taken down and looked for afterwards."""
    name = f"t{os.getpid()}-{abs(hash(request.node.name)) % 10000}"
    made = Lab(name)
    yield made
    made.down()
    assert traces_of(name) == []
