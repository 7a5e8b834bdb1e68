"""A lab in which something goes wrong every few seconds, for minutes.

Daemons are killed, objects made and deleted, what podlane put into the kernel is taken out by hand. After
each deed all must settle, every way of talking must work (`podlane check`), and a stream of numbered
datagrams must have lost nothing where the deed excuses nothing.

    python -m tests.soak --minutes 10 --seed 7 --set backend.type=bgp
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.lab import pss_kib
from tests.cluster.conftest import PODLANE, ROOT, Lab, run, traces_of, until

SETTLE_S = 60.0
NODES = ("node-1", "node-2", "node-3")

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: near}}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec:
  nodeName: node-2
  containers: [{name: c, image: absent, ports: [{containerPort: 9999, protocol: UDP}]}]
"""
POLICY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: guard}
spec:
  podSelector: {matchLabels: {app: far}}
  ingress: [{from: [{podSelector: {matchLabels: {app: near}}}]}]
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: coming}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 8000, targetPort: 80}]}
"""
FLAP = """
echo 1 > /proc/sys/net/ipv6/conf/eth0/keep_addr_on_down
four=$(ip -4 route show default) six=$(ip -6 route show default)
ip link set eth0 down; sleep 0.3; ip link set eth0 up
ip -4 route add $four; ip -6 route add $six
"""
STREAM = """
import socket, sys, threading, time
# A numbered datagram every 5 ms: once told to end, how many were sent and how many came back.
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.connect((sys.argv[1], 9999))
s.settimeout(0.5)
sent = answered = 0
end = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(1), end.set()), daemon=True).start()
while not end.is_set():
    try:
        s.send(b"%d" % sent)
        sent += 1
        s.recv(4096)
        answered += 1
    except OSError:
        pass
    time.sleep(0.005)
print(sent, answered)
"""


class Stream:
    """From pod near to an address of pod far, until `counts` is asked for."""

    def __init__(self, lab: Lab, address: str) -> None:
        command = [
            str(PODLANE),
            "exec",
            "--lab",
            lab.name,
            "near",
            "--",
            "python3",
            "-c",
            STREAM,
            address,
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def counts(self) -> tuple[int, int]:
        """(sent, answered)"""
        output, _ = self._process.communicate("x", timeout=30)
        sent, answered = map(int, output.split())
        return sent, answered


@dataclass
class Soak:
    lab: Lab
    chance: random.Random
    done: Counter[str] = field(default_factory=Counter)

    # --- what goes wrong ---

    def kill(self, *services: str) -> None:
        for service in services:
            if pid := self.lab.running_pid(service):
                os.kill(pid, 9)

    def on_node(self, *command: str) -> None:
        """What it takes away may be gone already."""
        self.lab.podlane(
            "node", self.chance.choice(NODES), "--lab", self.lab.name, "--", *command, check=False
        )

    def kill_agent(self) -> None:
        self.kill(f"agent/{self.chance.choice(NODES)}")

    def kill_agents(self) -> None:
        self.kill(*(f"agent/{node}" for node in NODES))

    def kill_control(self) -> None:
        self.kill("control")

    def kill_all(self) -> None:
        self.kill("control", *(f"agent/{node}" for node in NODES))

    def delete_a_pod(self) -> None:
        pods = [p["metadata"]["name"] for p in self.lab.get("pods", "-l", "app=tomcat")["items"]]
        if pods:
            self.lab.kubectl("delete", "pod", self.chance.choice(pods), "--wait=false")

    def scale(self) -> None:
        self.lab.kubectl("scale", "deployment/tomcat", f"--replicas={self.chance.randint(1, 6)}")

    def apply_policy(self) -> None:
        self.lab.kubectl("apply", "--validate=false", "-f", "-", input=POLICY)

    def delete_policy(self) -> None:
        self.lab.kubectl("delete", "--ignore-not-found", "networkpolicy", "guard")

    def apply_service(self) -> None:
        self.lab.kubectl("apply", "--validate=false", "-f", "-", input=SERVICE)

    def delete_service(self) -> None:
        self.lab.kubectl("delete", "--ignore-not-found", "service", "coming")

    def take_routes(self) -> None:
        self.on_node("sh", "-c", "ip route flush proto 85; ip -6 route flush proto 85")

    def take_tables(self) -> None:
        self.on_node("sh", "-c", "nft list tables | grep podlane | while read t; do nft delete $t; done")

    def take_tunnels(self) -> None:
        self.on_node(
            "sh", "-c", "for d in plvxlan plwg plipip pludp; do ip link del $d 2>/dev/null; done; true"
        )

    def take_neighbours(self) -> None:
        self.on_node("sh", "-c", "ip neigh flush nud permanent; ip -6 neigh flush nud permanent")

    def uplink_flap(self) -> None:
        """With what a node's own network manager does about it: addresses and the gateways come back."""
        self.on_node("sh", "-c", FLAP)

    # --- what must hold ---

    def settled(self) -> bool:
        status = json.loads(
            self.lab.podlane("status", self.lab.name, "-o", "json", check=False).stdout or "{}"
        )
        return bool(status.get("nodes")) and all(
            n["agent"].get("ready") and not n["agent"].get("failures") for n in status["nodes"]
        )

    def all_works(self) -> int:
        """How many ways were tried. Asked again until all do: what heals by itself needs its moment."""
        try:
            until(self.settled, SETTLE_S)
        except AssertionError:
            print(self.lab.podlane("status", self.lab.name, check=False).stdout, file=sys.stderr)
            raise
        deadline_s = time.monotonic() + SETTLE_S
        while True:
            try:
                return len(self.lab.check()["checks"])
            except AssertionError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.2)


HARMLESS = (
    *("kill_agent", "kill_agents", "kill_control", "kill_all", "delete_a_pod", "scale"),
    *("apply_policy", "delete_policy", "apply_service", "delete_service"),
)
HARMFUL = ("take_routes", "take_tables", "take_tunnels", "take_neighbours", "uplink_flap")


def memory(lab: Lab) -> dict[str, int]:
    """KiB of each daemon."""
    names = ("control", *(f"agent/{node}" for node in NODES))
    return {name: pss_kib(lab.running_pid(name)) for name in names}


def soak(lab: Lab, minutes: float, chance: random.Random, deeds: Sequence[str]) -> None:
    site = Soak(lab, chance)
    far: list[dict[str, Any]] = lab.get("pod", "far")["status"]["podIPs"]
    site.all_works()
    before = memory(lab)
    end_s = time.monotonic() + 60 * minutes
    while time.monotonic() < end_s:
        name = chance.choice(deeds)
        stream = Stream(lab, chance.choice(far)["ip"])
        time.sleep(0.3)
        deed: Callable[[], None] = getattr(site, name)
        deed()
        began_s = time.monotonic()
        ways = site.all_works()
        sent, answered = stream.counts()
        print(
            f"{site.done.total():4} {name:16} {ways} ways hold after {time.monotonic() - began_s:.1f} s, "
            f"{sent - answered} of {sent} datagrams lost",
            flush=True,
        )
        if name in HARMLESS and sent != answered:
            raise SystemExit(f"{name} cost {sent - answered} datagrams of {sent}")
        site.done[name] += 1
    print("deeds:", ", ".join(f"{name} {count}" for name, count in sorted(site.done.items())))
    for name, kib in memory(lab).items():
        print(f"{name}: {before[name] // 1024} -> {kib // 1024} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument(
        "--seed", type=int, default=None, help="of what goes wrong; printed when none is given"
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", help="as of `podlane up`")
    parser.add_argument("--only", action="append", choices=HARMLESS + HARMFUL, help="what goes wrong")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    print(f"seed {seed}", flush=True)
    lab = Lab(f"soak{os.getpid()}")
    options = [word for setting in arguments.settings for word in ("--set", setting)]
    racks = 1 if "backend.type=host-gw" in arguments.settings else 2  # plain routes lead to one's own subnet
    try:
        files = [
            word
            for name in ("web", "tomcat", "daemonset")
            for word in ("-f", str(ROOT / f"examples/{name}.yaml"))
        ]
        run(
            str(PODLANE), "up", lab.name, "--nodes", str(len(NODES)), "--set", f"fabric.racks={racks}",
            *options, *files, "-f", "-", input=PODS,
        )  # fmt: skip
        soak(lab, arguments.minutes, random.Random(seed), arguments.only or HARMLESS + HARMFUL)
    finally:
        lab.down()
    left = traces_of(lab.name)
    if left:
        raise SystemExit(f"left behind: {left}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
