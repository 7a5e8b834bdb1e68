"""The fabric's router as a BGP speaker, for labs whose nodes speak BGP.

Nodes of different racks have it between them, so it must know where pods are: every node has a session with
the router's address in its rack (eBGP), tells its own prefixes and is told nothing, since its default route
leads here anyway. So `outside` reaches pods under their own addresses too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from podlane.compile.view import ZONE_LABEL
from podlane.engines.bird.process import require
from podlane.lab import record as records
from podlane.lab.record import zone
from podlane.lab.topology import Topology, plan
from podlane.model.addresses import Family, Prefix, family_of
from podlane.model.backends import BackendType
from podlane.model.bgp import BgpPeerConfig
from podlane.model.config import NetworkConfig

AS_NUMBER = 64511
_DIGIT = {Family.IPV4: "4", Family.IPV6: "6"}


def peered(config: NetworkConfig, topology: Topology) -> NetworkConfig:
    """config with the router among the BGP peers of every node: by its address in the node's rack."""
    gateways = dict.fromkeys(gateway for host, _ in topology.nodes for gateway in host.gateways)
    configured = {peer.address for peer in config.bgp.peers}
    racks = {gateway: rack for host, rack in topology.nodes for gateway in host.gateways}
    # A node that is cut off is forgotten at once where others serve what it announced. Pods' prefixes are
    # nobody else's: those stay while a speaker begins anew.
    bfd = config.backend.type is not BackendType.BGP
    peers = [
        BgpPeerConfig(address=str(g), as_number=AS_NUMBER, nodes={ZONE_LABEL: zone(racks[g])}, bfd=bfd)
        for g in gateways
        if str(g) not in configured
    ]
    return replace(config, bgp=replace(config.bgp, peers=[*config.bgp.peers, *peers]))


def run(options: dict[str, Any]) -> None:
    """Entry of the service `router`. options: {"lab": NAME}. Becomes BIRD."""
    lab = records.load(options["lab"])
    directory = lab.paths.run / "router"
    directory.mkdir(exist_ok=True, mode=0o700)
    path = directory / "bird.conf"
    path.write_text(render(lab.config, plan(lab.config, len(lab.nodes))))
    os.execv(require(), ["bird", "-f", "-c", str(path), "-s", str(directory / "bird.ctl")])


def render(config: NetworkConfig, topology: Topology) -> str:
    """Routes come from nodes and go to the kernel; nothing is announced."""
    own = topology.segments[0].addresses[0].ip
    router_id = str(own) if own.version == 4 else "0.0.0.1"
    lines = [f"router id {router_id};", "log stderr { warning, error, fatal, bug };", "protocol device {}"]
    if any(peer.bfd for peer in config.bgp.peers):
        lines.append('protocol bfd { interface "*" { interval 100 ms; multiplier 3; }; }')
    for family, nodes in config.nodes.items():
        watched = any(
            peer.bfd and ("." in peer.address) is (family is Family.IPV4) for peer in config.bgp.peers
        )
        lines += _family(
            family, nodes, [p for p in config.pods.values() if family_of(p) is family], watched=watched
        )
    return "\n".join(lines) + "\n"


def _family(family: Family, nodes: Prefix, pods: list[Prefix], *, watched: bool) -> Iterator[str]:
    digit, channel = _DIGIT[family], f"ipv{_DIGIT[family]}"
    within = ", ".join(f"{p}+" for p in pods)
    yield f"protocol direct direct{digit} {{ {channel}; }}"
    yield f"protocol kernel kernel{digit} {{"
    yield f"  merge paths on; {channel} {{ import none; export where source = RTS_BGP; }};"
    yield "}"
    yield f"protocol bgp nodes{digit} {{"
    yield f'  local as {AS_NUMBER}; neighbor range {nodes} external; dynamic name "node{digit}_"; passive;'
    if watched:
        yield "  bfd on; error wait time 1, 4;"  # a node that is back is heard soon
    yield f"  {channel} {{ import where net ~ [ {within} ] || net.len = {family.bits}; export none; }};"
    yield "}"
