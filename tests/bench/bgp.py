"""How soon a route of one node is in another's kernel by BGP, and out of it again when the node is dead.

Two nodes' speakers, each in a namespace of its own, one link between them; what counts is the other's kernel.
"""

from __future__ import annotations

import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from podlane.compile.bgp import SPEAKER
from podlane.compile.tables import BgpPeer, BgpSpeaker, Table
from podlane.delta import Delta
from podlane.engines.bird.driver import RTPROT_BIRD, BirdDriver
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family, Prefix

ROUNDS, DEAD_ROUNDS = 30, 7
PODS = (ip_network("10.244.0.0/16"),)
EXTRA = ip_network("10.244.200.0/24")


class Node:
    def __init__(self, number: int, namespace: int, where: Path) -> None:
        self.namespace, self.where = namespace, where
        self.own = ip_network(f"10.244.{number}.0/24")
        source, other = ip_address(f"172.30.0.{number}"), ip_address(f"172.30.0.{3 - number}")
        # Its own prefixes are those within 10.244.N.0/24 and the extra one.
        speaker = BgpSpeaker(
            str(source), 64512, "eth0", (source,), (self.own, EXTRA)[: 3 - number], PODS, True, 0
        )
        with netns.entered(namespace):
            self.driver = BirdDriver(where / "bird")
            self.driver.resync(
                {
                    Table.SPEAKER: {SPEAKER: speaker},
                    Table.BGP_PEERS: {
                        ("other", Family.IPV4): BgpPeer(other, 64512, "", True, True, bfd=True)
                    },
                    Table.ORIGINATED: {self.own: self.own},
                    Table.LEARNT: {},
                }
            )

    @property
    def bird(self) -> int:
        return int((self.where / "bird" / "bird.pid").read_text())

    def announce(self, prefix: Prefix, wanted: bool) -> None:
        row = {prefix: prefix}
        change: Delta[Prefix, Prefix] = Delta(row, {}, {}) if wanted else Delta({}, {}, row)
        with netns.entered(self.namespace):
            self.driver.apply({Table.ORIGINATED: change})

    def close(self) -> None:
        with netns.entered(self.namespace):
            self.driver.resync({})
            self.driver.close()


@contextmanager
def pair() -> Iterator[tuple[Node, Node]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        namespaces = [netns.new() for _ in range(2)]
        for fd in namespaces:
            stack.callback(os.close, fd)
        with Rtnl(namespaces[0]) as one, Rtnl(namespaces[1]) as two:
            one.create_veth("eth0", "eth0", peer_netns=namespaces[1], up=True, peer_up=True)
            for number, rt in enumerate((one, two), 1):
                rt.set_up("lo")
                rt.add_address("eth0", ip_interface(f"172.30.0.{number}/24"))
        nodes = []
        for number, fd in enumerate(namespaces, 1):
            where = folder / str(number)
            where.mkdir()
            nodes.append(Node(number, fd, where))
            stack.callback(nodes[-1].close)
        yield nodes[0], nodes[1]


def there(rt: Rtnl, prefix: Prefix, wanted: bool) -> float:
    """The moment at which it is so."""
    end_s = time.monotonic() + 30
    while any(r.destination == prefix for r in rt.routes(protocol=RTPROT_BIRD)) is not wanted:
        if time.monotonic() > end_s:
            raise SystemExit(f"{prefix} is {'not ' if wanted else ''}there after 30 s")
        time.sleep(0.0005)
    return time.monotonic()


def measure() -> dict[str, object]:
    told: list[float] = []
    gone: list[float] = []
    dead: list[float] = []
    with pair() as (one, two), Rtnl(two.namespace) as rt:
        there(rt, one.own, True)
        for _ in range(ROUNDS):
            for wanted, times in ((True, told), (False, gone)):
                began_s = time.monotonic()
                one.announce(EXTRA, wanted)
                times.append(1000 * (there(rt, EXTRA, wanted) - began_s))
        for _ in range(DEAD_ROUNDS):
            time.sleep(2.0)  # BFD has its fast timers by then
            began_s = time.monotonic()
            os.kill(one.bird, signal.SIGSTOP)
            dead.append(1000 * (there(rt, one.own, False) - began_s))
            os.kill(one.bird, signal.SIGCONT)
            there(rt, one.own, True)
    return {
        "a route of one node in the other's kernel": f"{_middle(told)} (target 200 ms)",
        "a route withdrawn": _middle(gone),
        "routes of a dead peer withdrawn, by BFD": f"{_middle(dead)} (target 500 ms)",
    }


def _middle(times_ms: list[float]) -> str:
    return f"median {statistics.median(times_ms):.0f} ms, longest {max(times_ms):.0f} ms"
