"""Other nodes: how long until all of them can be reached, and what one more or fewer costs.

First without a process, so that nothing else is in the figures: decoded, compiled, written to a namespace.
Then a whole agent, with 1,000 and a tenth of them, and nodes that come and go as an API server tells it.
"""

from __future__ import annotations

import asyncio
import os
import select
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_interface
from typing import Any

import msgspec

from podlane.agent.reconciler import Reconciler
from podlane.compile.engine import Compiler, capabilities, changes_of
from podlane.compile.view import UNDERLAY, Change
from podlane.kernel import netns
from podlane.kernel.netlink import NETLINK_ROUTE
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.rtnl.driver import RtnlDriver
from podlane.model.backends import Backend, BackendType
from podlane.model.config import NetworkConfig
from podlane.model.local import Underlay
from podlane.model.objects import Node
from tests.bench import cluster_objects, cluster_scale
from tests.bench.cluster_objects import ME, POD_CIDRS, Size
from tests.bench.service_control import centiles, cpu_s

PEERS, STARTS, EVENTS = 1_000, 3, 200
PAUSE_S = 0.06  # longer than the agent collects changes that keep coming
_ROUTE_GROUPS = (7, 11)  # RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE
_NEW_ROUTE, _DELETED_ROUTE = 24, 25
_DECODE = msgspec.json.Decoder(Node).decode

Result = dict[str, Any]


def node(number: int) -> Node:
    return _DECODE(cluster_objects.node(number))


@contextmanager
def control() -> Iterator[Reconciler]:
    """A node's way from objects to the kernel; its peers are not there yet."""
    fd = netns.new()
    with Rtnl(fd) as rt:
        rt.create_veth("eth0", "other", peer_netns=fd, up=True, peer_up=True)
        for own in ("172.30.1.1/24", "fd00:172:30::1/112"):
            rt.add_address("eth0", ip_interface(own))
    config = NetworkConfig(pod_cidrs=list(POD_CIDRS), backend=Backend(type=BackendType.VXLAN))
    compiler = Compiler(ME, config, [each for each in capabilities() if each.name in ("node", "peers")])
    driver = RtnlDriver(fd)
    try:
        yield Reconciler(compiler, [driver])
    finally:
        driver.close()
        os.close(fd)


async def once(peers: int) -> Result:
    """From nothing to `peers` nodes, then one more and one fewer again and again."""
    with control() as reconciler:
        began_s, began_cpu_s = time.perf_counter(), cpu_s()
        objects = [node(number) for number in range(peers + 1)]
        reconciler.submit(changes_of(objects))
        reconciler.submit([Change(UNDERLAY, None, Underlay("eth0", 1500))])
        reconciler.allow_sync()
        await reconciler.generation()
        found: Result = {"load_s": time.perf_counter() - began_s, "load_cpu_s": cpu_s() - began_cpu_s}
        assert not reconciler.failures, reconciler.failures[:3]
        compiler = reconciler.compiler
        before = compiler.units_compiled, compiler.rows_compared, reconciler.counts.operations
        times: dict[str, list[float]] = {"more": [], "fewer": []}
        for turn in range(EVENTS):
            another = node(peers + 1 + turn % 50)
            for which, change in (
                ("more", Change("Node", None, another)),
                ("fewer", Change("Node", another, None)),
            ):
                began_s = time.perf_counter()
                reconciler.submit([change])
                await reconciler.generation()
                times[which].append((time.perf_counter() - began_s) * 1000)
        after = compiler.units_compiled, compiler.rows_compared, reconciler.counts.operations
        found |= {which: centiles(each) for which, each in times.items()}
        found["work"] = [(b - a) / EVENTS / 2 for a, b in zip(before, after, strict=True)]
        assert not reconciler.failures, reconciler.failures[:3]
        return found


def agent(peers: int) -> Result:
    """A whole agent process with nothing else to do."""
    processors = cluster_scale.halves()
    size = Size(nodes=peers + 1, pods=100, services=20, policies=0)
    with cluster_scale.site(size, processors) as (where, api):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, processors[1])
        try:
            found = cluster_scale.start(where, processors[0])
            netlink = Netlink(NETLINK_ROUTE, where.fd, groups=_ROUTE_GROUPS)
            try:
                found["event_ms"] = centiles([_event_ms(api, netlink) for _ in range(EVENTS)])
            finally:
                netlink.close()
            assert where.process is not None
            found["after_mib"] = cluster_scale.pss_kib(where.process.pid) / 1024
            return found
        finally:
            os.sched_setaffinity(0, before)


def _event_ms(api: cluster_scale.Api, netlink: Netlink) -> float:
    """A node comes, or the one that came goes: until both families' routes did."""
    time.sleep(PAUSE_S)
    while select.select([netlink], [], [], 0)[0]:
        netlink.receive()
    sent_s = api.ask("churn", 1000, 0.001, "nodes")["sent"][0]
    left = 2
    while left > 0:
        if not select.select([netlink], [], [], 5.0)[0]:
            raise SystemExit("the agent changed no route in 5 s")
        left -= sum(message.type in (_NEW_ROUTE, _DELETED_ROUTE) for message in netlink.receive())
    return (time.monotonic() - sent_s) * 1000


def measure(scale: float = 1.0) -> dict[str, object]:
    many = max(20, round(PEERS * scale))
    few = max(10, many // 10)
    runs = {number: [asyncio.run(once(number)) for _ in range(STARTS)] for number in (few, many)}
    load_s, load_cpu_s = (
        statistics.median(run[key] for run in runs[many]) for key in ("load_s", "load_cpu_s")
    )
    agents = {number: agent(number) for number in (few, many)}
    found: dict[str, object] = {
        f"{many} nodes, from objects to the kernel": f"{load_s:.2f} s (at most 2), {load_cpu_s:.2f} s of CPU",
        f"{many} nodes, agent start to all programmed": f"{agents[many]['start_s']:.2f} s",
        f"{many} nodes, memory of the agent": f"{agents[many]['pss_mib']:.0f} MiB (at most 60), "
        f"{agents[many]['after_mib']:.0f} after {EVENTS} changes; {few} nodes: {agents[few]['pss_mib']:.0f}",
    }
    for number in (few, many):
        run = runs[number][-1]
        units, rows, operations = run["work"]
        found[f"{number} nodes, one more"] = _times(run["more"])
        found[f"{number} nodes, one fewer"] = _times(run["fewer"])
        found[f"{number} nodes, work for one"] = f"{units:g} units, {rows:g} rows, {operations:g} operations"
        found[f"{number} nodes, one more or fewer, from the API to the kernel"] = _times(
            agents[number]["event_ms"]
        )
    return found


def _times(found: dict[str, float]) -> str:
    return f"p50 {found['p50']:.2f} ms (at most 5), p99 {found['p99']:.2f} ms"
