"""Good configurations, changed by chance, through the whole agent: done and undone, or refused whole."""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podlane.cni import protocol
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.cni_node import CniNode
from tests.netns.test_cni_types import left

ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "gw": "10.22.0.7", "mtu": 1400, "priority": 7}]
HOST_LOCAL = {
    "type": "host-local",
    "ranges": [[{"subnet": "10.22.0.0/24", "rangeStart": "10.22.0.9"}], [{"subnet": "fd00:22::/64"}]],
    "routes": ROUTES,
}
STATIC = {
    "type": "static",
    "addresses": [{"address": "10.22.0.9/24", "gateway": "10.22.0.1"}],
    "routes": ROUTES,
}
RUNTIME = {
    "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
    "bandwidth": {"ingressRate": 1000000, "ingressBurst": 100000},
    "ips": ["10.22.0.10"],
    "mac": "02:00:00:00:00:09",
    "dns": {"servers": ["10.0.0.53"]},
    "aliases": ["web"],
}
PREVIOUS = {
    "interfaces": [
        {"name": "cni0"},
        {"name": "uplink"},
        {"name": "eth0", "sandbox": "/x", "mac": "02:00:00:00:00:09"},
    ],
    "ips": [
        {"address": "10.22.0.9/24", "gateway": "10.22.0.1", "interface": 2},
        {"address": "fd00:22::9/64"},
    ],
    "routes": ROUTES,
    "dns": {"nameservers": ["10.0.0.53"]},
}
CHAINED = [
    {"type": "portmap", "runtimeConfig": {"portMappings": RUNTIME["portMappings"]}},
    {"type": "firewall", "ingressPolicy": "isolated"},
    {"type": "bandwidth", "egressRate": 1000000, "egressBurst": 100000},
    {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_notify": "1"}, "mtu": 1400, "promisc": True},
]
BASES = [
    *(each | {"prevResult": PREVIOUS} for each in CHAINED),
    {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "ipam": HOST_LOCAL},
    {"type": "bridge", "isDefaultGateway": True, "hairpinMode": True, "ipam": STATIC, "mtu": 1400},
    {"type": "ptp", "ipMasq": True, "ipam": HOST_LOCAL, "dns": {"nameservers": ["10.0.0.53"]}},
    {"type": "podlane"},
    {"type": "loopback"},
]
WORDS = [
    "",
    "0",
    "10.22.0.9",
    "10.22.0.9/24",
    "10.22.0.0/31",
    "fd00:22::9",
    "::/0",
    "0.0.0.0",
    "lo",
    "eth0",
    "cni0",
]
VALUES = (
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 67, 68, 1280, 4094, 65535, 65536, 1 << 31, 1 << 32, 1 << 64, 0.5])
    | st.sampled_from(WORDS)
    | st.text(max_size=17)
    | st.just([])
    | st.just({})
    | st.lists(st.sampled_from(WORDS), max_size=2)
)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place within a document."""
    if here:
        yield here
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, each in children:
        yield from places(each, (*here, key))


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    document = {
        "cniVersion": draw(st.sampled_from(protocol.VERSIONS)),
        "name": "net",
        "runtimeConfig": {
            key: RUNTIME[key] for key in draw(st.sets(st.sampled_from(sorted(RUNTIME)), max_size=2))
        },
    }
    document = copy.deepcopy(document | draw(st.sampled_from(BASES)))
    for _ in range(draw(st.integers(0, 3))):
        *parents, last = draw(
            st.sampled_from([p for p in places(document) if p not in (("name",), ("type",))])
        )
        target = document
        for key in parents:
            target = target[key]
        target[last] = copy.deepcopy(draw(VALUES))
    return document


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    where = tmp_path_factory.mktemp("mutations")
    node_fd, pod = netns.new(), netns.new()
    node = CniNode(node_fd, where)
    with asyncio.Runner() as runner:
        runner.run(node.__aenter__())
        yield runner, node, pod, where
        runner.run(node.__aexit__())
    os.close(node_fd)
    os.close(pod)


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(configurations())
def test_it_is_done_and_undone_or_refused_with_nothing_left(site, config):
    runner, node, pod, where = site
    if isinstance(config.get("ipam"), dict):
        config["ipam"]["dataDir"] = str(where / "networks")  # never where chance would have it
    stdin = json.dumps(config).encode()
    environment = {"CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0", "CNI_NETNS": "/x", "CNI_PATH": "/nowhere"}
    if config["type"] in ("loopback", "tuning"):
        environment["CNI_IFNAME"] = "lo"

    def ask(verb: str) -> tuple[int, dict[str, Any]]:
        status, stdout = runner.run(node.plugin(environment | {"CNI_COMMAND": verb}, stdin, pod))
        return status, json.loads(stdout or b"{}")

    status, answer = ask("ADD")
    if status:
        assert answer["code"] != protocol.INTERNAL, answer
    else:
        again, same = ask("ADD")
        assert (again, same) == (0, answer)
        assert ask("DEL") == (0, {})
    leases = [path.name for path in (where / "networks").glob("*/[0-9f]*")]
    assert left(node) + leases + node.leases.all() + list(node.attachments) == []
    with Rtnl(pod) as rt:
        assert [link.name for link in rt.links()] == ["lo"]
