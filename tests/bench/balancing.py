"""How far ten thousand connections are from the weights; how soon a client learns that its pod is gone."""

from __future__ import annotations

import json
import math
import socket
import statistics
import time
from collections import Counter
from collections.abc import Mapping

from msgspec import structs

from podlane.compile.balancing import WEIGHTS
from podlane.kernel.nft.services import ServicesDriver
from podlane.model.addresses import Family
from tests.netns.service_lab import ServiceLab, service_lab
from tests.netns.test_connections import silent
from tests.netns.test_services import CONFIG, Net, piece, service

FLOWS, RESETS = 10_000, 15


def measure() -> dict[str, object]:
    found: dict[str, object] = {}
    with service_lab() as lab:
        for family in Family:
            net = _net(lab, family)
            try:
                for words, weights in (
                    ("equal", {"local-1": 1, "local-2": 1, "remote": 1}),
                    ("5:3:1", {"local-1": 5, "local-2": 3, "remote": 1}),
                ):
                    sigmas = _deviation(net, weights)
                    found[f"{FLOWS} connections, weights {words}, {family}"] = f"{sigmas:.2f} sigma at most"
                times_ms = [_reset_ms(net) for _ in range(RESETS)]
                p50, worst = statistics.median(times_ms), max(times_ms)
                what = f"a waiting client's reset after its pod is gone, {family}"
                found[what] = f"{p50:.0f} ms, {worst:.0f} ms at most"
            finally:
                net.driver.remove()
                net.driver.close()
    return found


def _net(lab: ServiceLab, family: Family) -> Net:
    net = Net(lab, family)
    net.driver.close()
    net.driver = ServicesDriver(CONFIG, lab.fds["node"], gone=lambda addresses: addresses)
    net.driver.resync(net.tables)
    return net


def _deviation(net: Net, weights: Mapping[str, int]) -> float:
    """The largest distance of an endpoint's number from what is expected, in standard deviations."""
    web = service(net.plan, net.family)
    patterns = (
        f"{net.plan.pod(5)}={weights['local-1']},{net.plan.pod(6)}={weights['local-2']},*={weights['remote']}"
    )
    web = structs.replace(web, metadata=structs.replace(web.metadata, annotations={WEIGHTS: patterns}))
    net.set(web, piece(net.plan, net.family, *weights))
    net.forget_flows()  # or a port that comes round would go on with what it had
    seen: Counter[str] = Counter()
    for _ in range(FLOWS):
        where = net.plan.services.format(10)
        with net.lab.socket("client", where, socket.SOCK_DGRAM) as each:
            each.settimeout(3)
            each.connect((where, 80))
            each.send(b"?")
            seen[json.loads(each.recv(4096))[0]] += 1
    total = sum(weights.values())
    return max(
        abs(seen[name] - FLOWS * weight / total) / math.sqrt(FLOWS * weight / total * (1 - weight / total))
        for name, weight in weights.items()
    )


def _reset_ms(net: Net) -> float:
    """From the generation that removes the endpoint to the client's error."""
    web = service(net.plan, net.family)
    net.set(web, piece(net.plan, net.family, "local-1"))
    stream, _ = net.lab.connect("client", net.plan.services.format(10))
    with stream, silent(net, "local-1"):
        began_s = time.perf_counter()
        net.set(web, piece(net.plan, net.family, "remote"))
        stream.settimeout(30)
        try:
            stream.recv(64)
        except ConnectionError:
            return 1000 * (time.perf_counter() - began_s)
    return math.inf
