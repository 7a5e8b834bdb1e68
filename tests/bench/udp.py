"""Backend udp: iperf3 between pods of two nodes, beside a proxy that moves one packet a system call.

The other proxy is what Flannel's does, written in Python as well: read, a hop less, sendto; recv, write. It
runs in the same lab in place of ours, on the same device and port, so only the proxy differs.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from podlane.compile.udp import DEVICE
from podlane.engines.udp.control import Request, Settings
from podlane.engines.udp.process import UdpProcess
from podlane.lab import record as records
from podlane.lab.paths import LabPaths
from tests.bench import throughput

LAB = "bench-udp"
ROUNDS = 5

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
        except (OSError, ValueError):  # nothing more, or no hop left
            pass
"""


def measure() -> dict[str, object]:
    with throughput.lab("udp") as runs:
        ours = {version: statistics.median(run() for _ in range(ROUNDS)) for version, run in runs.items()}
        rss = _rss_mib(_process("node-1").pid)
        with _plain_proxies():
            plain = statistics.median(runs[4]() for _ in range(ROUNDS))
    return {
        "Gbit/s, TCP": f"{ours[4]:.2f}, IPv6 {ours[6]:.2f}",
        "Gbit/s of one packet a system call": round(plain, 2),
        "times one packet a system call": round(ours[4] / plain, 1),
        "MiB of a proxy": rss,
    }


def _process(node: str) -> UdpProcess:
    return UdpProcess(LabPaths(LAB).agent_socket(node).parent / "udp", DEVICE)


@contextmanager
def _plain_proxies() -> Iterator[None]:
    lab = records.load(LAB)
    for node in lab.nodes:
        os.kill(_agent(node.name), signal.SIGSTOP)  # it would start ours again
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
        yield
    finally:
        for each in running:
            each.kill()
            each.wait()


def _agent(node: str) -> int:
    from podlane.lab.supervisor.client import Supervisor

    with Supervisor(LabPaths(LAB).supervisor_socket) as supervisor:
        (found,) = (p.pid for p in supervisor.list() if p.name == f"agent/{node}" and p.exit_status is None)
    return int(found)


def _rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return round(kib / 1024, 1)
