"""Backend udp: iperf3 between pods of two nodes, beside a proxy that moves one packet a system call.

The other proxy is what Flannel's does, written in Python as well: read, a hop less, sendto; recv, write. It
runs in the same lab in place of ours, on the same device and port, so only the proxy differs.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from podlane.compile.udp import DEVICE
from podlane.engines.udp.control import Request, Settings
from podlane.engines.udp.process import UdpProcess
from podlane.kernel import netns
from podlane.lab import record as records
from podlane.lab.paths import LabPaths
from tests.bench.lab import podlane
from tests.bench.path import pod_namespaces

LAB = "bench-udp"
ROUNDS, SECONDS = 3, 3

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: near}
spec: {nodeName: node-1, containers: [{name: c, image: absent}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far}
spec: {nodeName: node-2, containers: [{name: c, image: absent}]}
"""

PLAIN = """
import fcntl, os, select, socket, struct, sys
device, local, remote, port = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tun, 0x400454ca, struct.pack("16sH22x", device.encode(), 0x1001))
fcntl.ioctl(tun, 0x400454d0, 0)
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.setsockopt(1, 33, 8 << 20)
door.setsockopt(1, 32, 8 << 20)
door.bind((local, port))
door.setblocking(False)
to = (remote, port)
def older(p):
    found = bytearray(p)
    if found[0] >> 4 == 4:
        found[8] -= 1
        c = (found[10] << 8 | found[11]) + 0x100
        c = (c & 0xffff) + (c >> 16)
        found[10], found[11] = c >> 8, c & 255
    else:
        found[7] -= 1
    return found
poll = select.epoll()
poll.register(tun, 1)
poll.register(door.fileno(), 1)
print("ready", flush=True)
while True:
    for fd, _ in poll.poll():
        try:
            for _ in range(64):
                if fd == tun:
                    door.sendto(older(os.read(tun, 2000)), to)
                else:
                    os.write(tun, older(door.recv(2000)))
        except OSError:
            pass
"""


def measure() -> dict[str, object]:
    podlane("up", LAB, "--nodes", "2", "--set", "backend.type=udp", "-f", "-", input=PODS)
    try:
        lab = records.load(LAB)
        pods = pod_namespaces(LAB)
        target = _address(pods["far"])
        ours = [_gigabits(pods, target) for _ in range(ROUNDS)]
        rss = _rss_mib(_process("node-1").pid)
        six = statistics.median(_gigabits(pods, _address(pods["far"], "-6")) for _ in range(ROUNDS))
        # Agents would start the proxies again: they wait meanwhile.
        agents = [_agent(node.name) for node in lab.nodes]
        for pid in agents:
            os.kill(pid, signal.SIGSTOP)
        plain = _plain(lab, pods, target)
        found = statistics.median(ours)
        return {
            "Gbit/s, TCP, IPv4": round(found, 2),
            "Gbit/s, TCP, IPv6": round(six, 2),
            "Gbit/s of one packet a system call": round(plain, 2),
            "times one packet a system call": round(found / plain, 1),
            "MiB of a proxy": rss,
        }
    finally:
        podlane("down", LAB)


def _process(node: str) -> UdpProcess:
    return UdpProcess(LabPaths(LAB).agent_socket(node).parent / "udp", DEVICE)


def _plain(lab: records.LabRecord, pods: dict[str, int], target: str) -> float:
    settings: dict[str, Settings] = {}
    for node in lab.nodes:
        process = _process(node.name)
        told = process.ask(Request()).settings
        assert told is not None
        settings[node.name] = told
        process.stop()
    running = []
    try:
        for node in lab.nodes:
            mine = settings[node.name]
            (peer,) = mine.peers.values()
            command = [sys.executable, "-c", PLAIN, DEVICE, mine.local, peer.remote, str(mine.port)]
            enter = ["nsenter", f"--net=/proc/{node.pid}/ns/net"]
            running.append(subprocess.Popen([*enter, *command], stdout=subprocess.PIPE))
        for each in running:
            assert each.stdout is not None
            assert each.stdout.readline() == b"ready\n"
        return statistics.median(_gigabits(pods, target) for _ in range(ROUNDS))
    finally:
        for each in running:
            each.kill()
            each.wait()


def _agent(node: str) -> int:
    from podlane.lab.supervisor.client import Supervisor

    with Supervisor(LabPaths(LAB).supervisor_socket) as supervisor:
        (found,) = (p.pid for p in supervisor.list() if p.name == f"agent/{node}" and p.exit_status is None)
    return int(found)


def _address(namespace: int, family: str = "-4") -> str:
    with netns.entered(namespace):
        command = ["ip", "-j", family, "addr", "show", "eth0", "scope", "global"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return str(json.loads(done.stdout)[0]["addr_info"][0]["local"])


def _gigabits(pods: dict[str, int], target: str) -> float:
    with netns.entered(pods["far"]):
        server = subprocess.Popen(["iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            pass
        with netns.entered(pods["near"]):
            client = subprocess.run(
                ["iperf3", "-J", "-c", target, "-t", str(SECONDS)],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
        return float(json.loads(client.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
    finally:
        server.kill()
        server.wait()


def _rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return round(kib / 1024, 1)
