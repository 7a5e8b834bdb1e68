"""The same services as the reference proxy lays them out, through the `nft` program.

One chain a service with one anonymous map of its endpoints, and one verdict map that leads to the chains
(kube-proxy v1.36, nftables mode). Its control loop lists the table before every change; that is left out
here, so what is printed is the least it can take.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

from podlane.kernel import netns
from podlane.kernel.nft import command
from tests.bench.service_objects import PORT, endpoint_ip, virtual_ip

TABLE = "reference"
_CHANGES = 5

_SKELETON = f"""
table ip {TABLE} {{
	map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
	set cluster-ips {{ type ipv4_addr; }}
	chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
	chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}
	chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
	chain nat-output {{ type nat hook output priority -100; jump services; }}
}}
"""


def _rule(number: int, endpoints: int, extra: int = 0) -> str:
    ends = [endpoint_ip(number * endpoints + place) for place in range(endpoints)]
    ends += [f"10.200.0.{place + 1}" for place in range(extra)]
    places = ", ".join(f"{index} : {where} . {PORT}" for index, where in enumerate(ends))
    draw = f"numgen random mod {len(ends)} map {{ {places} }}"
    return f"add rule ip {TABLE} service-{number} meta l4proto tcp dnat ip addr . port to {draw}\n"


def _lines(services: int, endpoints: int) -> Iterator[str]:
    yield _SKELETON
    for number in range(services):
        where = virtual_ip(number)
        yield f"add chain ip {TABLE} service-{number}\n"
        yield (
            f"add rule ip {TABLE} service-{number} ip saddr != 10.244.0.0/16 ip daddr {where} "
            "tcp dport 80 jump mark-for-masquerade\n"
        )
        yield _rule(number, endpoints)
        yield f"add element ip {TABLE} cluster-ips {{ {where} }}\n"
        yield f"add element ip {TABLE} service-ips {{ {where} . tcp . 80 : goto service-{number} }}\n"


def measure(services: int, endpoints: int) -> dict[str, float]:
    """load_s: everything at once; event_ms: one endpoint more, median."""
    fd = netns.new()
    try:
        text = "".join(_lines(services, endpoints))
        began_s = time.perf_counter()
        command.load(text, fd)
        load_s = time.perf_counter() - began_s
        times_ms = []
        for number in range(min(_CHANGES, services)):
            text = f"flush chain ip {TABLE} service-{number}\n" + _rule(number, endpoints, extra=1)
            began_s = time.perf_counter()
            command.load(text, fd)
            times_ms.append((time.perf_counter() - began_s) * 1000)
        return {"load_s": load_s, "event_ms": statistics.median(times_ms)}
    finally:
        os.close(fd)
