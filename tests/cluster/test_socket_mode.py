"""A whole lab in services.mode socket: every way of talking, a killed agent, and nothing left of it."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import KernelNotFoundError, LabError
from podlane.kernel.bpf import installation, syscall
from podlane.lab import cgroups
from podlane.lab.agents import fetch
from podlane.lab.paths import LabPaths
from tests.cluster.conftest import PODLANE, Lab, traces_of, until

MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: on-host}
spec: {nodeName: node-1, hostNetwork: true, containers: [{name: c, image: absent, command: [sleep, "1000"]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: web}}
spec:
  nodeName: node-1
  containers: [{name: c, image: absent, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: web}}
spec:
  nodeName: node-2
  containers: [{name: c, image: absent, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports:
    - {name: http, port: 80, nodePort: 30080}
    - {name: dns, port: 53, protocol: UDP, nodePort: 30053}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec: {selector: {app: web}, internalTrafficPolicy: Local, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"""

# One socket, two datagrams, and who seems to have answered.
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
for _ in range(2):
    s.sendto(b"?", (sys.argv[1], 53))
    print(s.recvfrom(4096)[1][0])
"""
# Says when it is connected, and then what becomes of it.
STAY = """
import socket, sys
s = socket.create_connection((sys.argv[1], 80))
print(s.getpeername()[0], flush=True)
try:
    print(s.recv(1))
except OSError as error:
    print(error.strerror)
"""


class Sockets:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.services: dict[str, Any] = {s["metadata"]["name"]: s for s in lab.get("services")["items"]}

    def addresses(self, name: str = "web") -> list[str]:
        found: list[str] = self.services[name]["spec"]["clusterIPs"]
        return found

    def ask_agent(self, url: str, node: str = "node-1") -> str:
        return fetch(LabPaths(self.lab.name).agent_socket(node), url).decode()

    def choices(self, service: str) -> int:
        """How often sockets of node-1 were given an endpoint of a service."""
        lines = self.ask_agent("/metrics").splitlines()
        return sum(
            int(line.rpartition(" ")[2])
            for line in lines
            if line.startswith("podlane_agent_socket_choices_total{") and f'service="{service}"' in line
        )


@pytest.fixture(scope="module")
def site() -> Iterator[Sockets]:
    made = Lab(f"sock{os.getpid()}")
    mine: set[tuple[str, int]] = set()
    try:
        made.up("--nodes", "2", "--set", "services.mode=socket", "-f", "-", input=MANIFEST)
        yield Sockets(made)
        mine = kernel_objects(made.name)
        assert len([each for each in mine if each[0] == "link"]) == 2 * 11
    finally:
        made.down()
    assert traces_of(made.name) == []
    until(lambda: not mine & in_kernel())


def in_kernel() -> set[tuple[str, int]]:
    """Every BPF program, map and link that there is."""
    found: set[tuple[str, int]] = set()
    for what, command in (("program", 11), ("map", 12), ("link", 31)):  # BPF_…_GET_NEXT_ID
        number = 0
        while True:
            attr = syscall._Bytes(struct.pack("=II", number, 0).ljust(160, b"\0"))
            if syscall._attempt(command, attr) < 0:
                break
            (number,) = struct.unpack_from("=4xI", attr.content)
            found.add((what, number))
    return found


def kernel_objects(lab: str) -> set[tuple[str, int]]:
    """What a lab's nodes have attached, and what that uses."""
    nodes = cgroups.lab_cgroup(lab).iterdir()
    inodes = {path.stat().st_ino for path in nodes}
    found: set[tuple[str, int]] = set()
    for what, number in in_kernel():
        if what == "link":
            with suppress(KernelNotFoundError):  # somebody else's, that has just gone
                link = syscall._bpf(30, struct.pack("=I", number), "open link")  # BPF_LINK_GET_FD_BY_ID
                info = syscall.link_info(link)
                os.close(link)
                if info.cgroup in inodes:
                    program = syscall.program_of(info)
                    found |= {(what, number), ("program", program.id), *(("map", n) for n in program.maps)}
    return found


def test_check_finds_every_way(site: Sockets) -> None:
    before = site.choices("web")
    matrix = site.lab.check()
    assert {"pod-service", "node-service", "outside-nodeport", "no-nat"} <= {
        c["kind"] for c in matrix["checks"]
    }
    assert site.choices("web") > before  # and it was the socket that led there


@pytest.mark.parametrize("pod", ["client", "on-host"])
def test_pods_of_both_networks_are_served(site: Sockets, pod: str) -> None:
    for address in site.addresses():
        url = f"http://[{address}]/hostname" if ":" in address else f"http://{address}/hostname"
        before = site.choices("web")
        names = {site.lab.exec(pod, "curl", "-sS", url).stdout for _ in range(6)}
        assert names <= {"a", "b"}
        assert site.lab.exec(pod, "python3", "-c", ASK, address).stdout.split() == [address] * 2
        assert site.choices("web") == before + 7
        refused = site.lab.exec(pod, "curl", "-sS", "-m", "5", url.replace("/hostname", ":81/"), check=False)
        assert refused.returncode == 7


def test_policies_and_refusals(site: Sockets) -> None:
    near, nobody = site.addresses("near")[0], site.addresses("nobody")[0]
    answers = {site.lab.exec("client", "curl", "-sS", f"http://{near}/hostname").stdout for _ in range(6)}
    assert answers == {"a"}
    assert site.lab.exec("client", "curl", "-sS", "-m", "5", f"http://{nobody}/", check=False).returncode == 7
    node = site.lab.get("nodes", "node-1")["status"]["addresses"][0]["address"]
    before = site.choices("web")
    assert site.lab.exec("client", "curl", "-sS", f"http://{node}:30080/hostname").stdout in ("a", "b")
    assert site.lab.outside("curl", "-sS", f"http://{node}:30080/hostname").stdout in ("a", "b")
    assert site.choices("web") == before + 1  # outside is nftables' part


def test_an_agent_that_is_killed_loses_nothing(site: Sockets) -> None:
    """Nor do its programs: they run as before, and are found again."""
    address = site.addresses("near")[0]
    attached = kernel_objects(site.lab.name)
    with Stream(site, address) as stream:
        assert stream.line() == address
        [socket] = [
            s
            for s in json.loads(site.ask_agent("/sockets"))["sockets"]
            if s["service"] and s["service"]["name"] == "near"
        ]
        assert socket["address"] == {"address": address, "port": 80}
        [flow] = json.loads(
            site.lab.podlane("flows", "--lab", site.lab.name, "--service", "near", "-o", "json").stdout
        )["items"]
        assert (flow["node"], flow["endpoint"]["name"]) == ("node-1", "default/pod/a")
        os.kill(agent(site, "node-1"), 9)
        assert site.lab.exec("client", "curl", "-sS", f"http://{address}/hostname").stdout == "a"
        until(lambda: again(site))
        assert kernel_objects(site.lab.name) == attached
        # Its endpoint goes for good: so does the connection, at once.
        site.lab.kubectl("delete", "pod", "a", "--grace-period=0", "--force")
        assert stream.line() in ("Software caused connection abort", "b''", "Connection reset by peer")
    assert site.lab.exec("client", "curl", "-sS", f"http://{site.addresses()[0]}/hostname").stdout == "b"


def test_pins_that_somebody_took_away_come_back(site: Sockets) -> None:
    address = site.addresses()[0]
    for what in ("link_connect4", "members", ""):  # a hook, a map, and the whole directory
        before = kernel_objects(site.lab.name)
        site.lab.node("node-2", "rm", "-r", f"/sys/fs/bpf/podlane/{what}")
        until(lambda what=what, before=before: repaired(site, before, same=what == "members"))
    assert site.lab.node("node-2", "curl", "-sS", f"http://{address}/hostname").stdout == "b"


def repaired(site: Sockets, before: set[tuple[str, int]], *, same: bool) -> bool:
    """same: a map is held by the agent, and pinned again; a link without a pin is gone."""
    now = kernel_objects(site.lab.name)
    pins = site.lab.node("node-2", "ls", "/sys/fs/bpf/podlane", check=False).stdout.split()
    links = [each for each in now if each[0] == "link"]
    return (now == before) is same and len(links) == 22 and sorted(pins) == sorted(installation.PINS)


def test_back_in_mode_nftables_nothing_is_attached(site: Sockets) -> None:
    """The configuration is what an agent finds at its start."""
    config = LabPaths(site.lab.name).run / "config.yaml"
    before = kernel_objects(site.lab.name)
    config.write_text(config.read_text().replace("mode: socket", "mode: nftables"))
    try:
        os.kill(agent(site, "node-2"), 9)
        until(lambda: again(site, "node-2"))
        left = kernel_objects(site.lab.name)
        assert len([each for each in before - left if each[0] == "link"]) == 11
        assert "/sys/fs/bpf/podlane" not in site.lab.node("node-2", "find", "/sys/fs/bpf").stdout
        url = f"http://{site.addresses()[0]}/hostname"
        assert site.lab.node("node-2", "curl", "-sS", url).stdout == "b"
    finally:
        config.write_text(config.read_text().replace("mode: nftables", "mode: socket"))
        os.kill(agent(site, "node-2"), 9)
        until(lambda: again(site, "node-2"))


def agent(site: Sockets, node: str) -> int:
    [found] = [
        pid
        for pid in cgroups.processes(cgroups.lab_cgroup(site.lab.name) / node / "system")
        if Path(f"/proc/{pid}/comm").read_text().startswith("pl-agent")
    ]
    return found


def again(site: Sockets, node: str = "node-1") -> bool:
    try:
        return bool(json.loads(site.ask_agent("/status", node))["ready"])
    except LabError:
        return False


class Stream:
    """A process of `client` that stays connected."""

    def __init__(self, site: Sockets, address: str) -> None:
        command = [
            str(PODLANE),
            "exec",
            "--lab",
            site.lab.name,
            "client",
            "--",
            "python3",
            "-c",
            STAY,
            address,
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()
