"""Addresses of a LoadBalancerPool that the fabric's router learns by BGP, in a lab whose pods go by VXLAN."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from podlane.lab import record as records
from tests.cluster.conftest import Lab, run, traces_of, until
from tests.cluster.test_load_balancer_pools import ask

MANIFEST = """
apiVersion: podlane.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: public}
spec: {announce: [bgp], addresses: [203.0.113.0/28, "2001:db8:77::/124"]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node-2
  containers: [{name: c, image: example.com/web:1, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: every, annotations: {podlane.dev/load-balancer-ips: "203.0.113.1,2001:db8:77::1"}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: local, annotations: {podlane.dev/load-balancer-ips: "203.0.113.2"}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""
NODES = {
    "172.30.1.11": "node-1",
    "172.30.1.12": "node-2",
    "fd00:172:30::1:b": "node-1",
    "fd00:172:30::1:c": "node-2",
}
BOTH = {"node-1", "node-2"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(f"t{os.getpid()}-lbbgp")
    file = tmp_path_factory.mktemp("pools") / "pools.yaml"
    file.write_text(MANIFEST)
    try:
        # A lab makes its router a peer of the nodes where anything is to be told; the pool says the rest.
        made.up("--nodes", "2", "-f", str(file), "--set", "bgp.advertise=ExternalIP")
        yield made
    finally:
        made.down()
        assert traces_of(made.name) == []


def next_hops(lab: Lab, where: str) -> set[str]:
    """The nodes to which the fabric's router sends what is for an address; "on-link" for a pool's route."""
    pid = str(records.load(lab.name).pids["fabric"])
    family = "-6" if ":" in where else "-4"
    answer = run("nsenter", "-t", pid, "-n", "ip", "-j", family, "route", "show", "match", where).stdout
    found: list[dict[str, Any]] = [r for r in json.loads(answer) if r["dst"] not in ("default", "::/0")]
    hops = [hop for route in found for hop in route.get("nexthops", [route])]
    return {NODES.get(hop.get("gateway") or hop.get("via", {}).get("host", ""), "on-link") for hop in hops}


def lent(lab: Lab, where: str) -> bool:
    shown = (lab.node(node, "ip", "-o", "address", "show", "dev", "eth0").stdout for node in sorted(BOTH))
    return any(f" {where}/" in each for each in shown)


def test_the_router_learns_where_an_address_is_and_forgets_it(lab: Lab, tmp_path: Path) -> None:
    until(lambda: next_hops(lab, "203.0.113.1") == next_hops(lab, "2001:db8:77::1") == BOTH)
    until(lambda: next_hops(lab, "203.0.113.2") == {"node-2"})
    assert next_hops(lab, "203.0.113.3") == set(), "nobody has it"
    for where in ("203.0.113.1", "2001:db8:77::1", "203.0.113.2"):
        assert until(lambda w=where: ask(lab, w))["pod"] == "web"
        assert not lent(lab, where), "no node answers ARP or NDP for it"
    assert ask(lab, "203.0.113.2")["client"] == "198.51.100.10"
    # Pods' prefixes are not told: they go by VXLAN.
    assert next_hops(lab, "10.244.1.1") == set()
    told = lab.podlane("services", "every", "--lab", lab.name).stdout
    assert "203.0.113.1:80/TCP, pool public, routers are told by node-1, node-2" in told
    story = lab.podlane("explain", "outside", "203.0.113.2:80", "--lab", lab.name).stdout
    assert "routers are told by BGP from node-2 of 203.0.113.2" in story
    lab.check()
    # A node that is cut off is forgotten, long before its session's hold time is over.
    lab.node("node-1", "ip", "link", "set", "eth0", "down")
    try:
        until(lambda: next_hops(lab, "203.0.113.1") == next_hops(lab, "2001:db8:77::1") == {"node-2"})
        assert until(lambda: ask(lab, "203.0.113.1"))["pod"] == "web"
    finally:
        lab.node("node-1", "ip", "link", "set", "eth0", "up")
        lab.node("node-1", "ip", "-4", "route", "replace", "default", "via", "172.30.1.1")
        lab.node("node-1", "ip", "-6", "route", "replace", "default", "via", "fd00:172:30::1:1")
    until(lambda: next_hops(lab, "203.0.113.1") == next_hops(lab, "2001:db8:77::1") == BOTH)
    # The only endpoint goes: externalTrafficPolicy Local has nowhere to be.
    lab.kubectl("delete", "pod", "web", "--wait=false")
    until(lambda: next_hops(lab, "203.0.113.2") == set())
    assert next_hops(lab, "203.0.113.1") == BOTH


def test_nobody_writes_where_nothing_happens(lab: Lab) -> None:
    """But for the kubelets' heartbeats."""

    def versions() -> dict[str, Any]:
        kinds = "services,loadbalancerpools,endpointslices,namespaces"
        found = {(o["kind"], o["metadata"]["name"]): o["metadata"] for o in lab.get(kinds, "-A")["items"]}
        told = {key: meta["resourceVersion"] for key, meta in found.items()}
        for node in lab.get("nodes")["items"]:
            conditions = {c["type"]: c for c in node["status"]["conditions"]}
            unavailable = conditions["NetworkUnavailable"]
            assert (unavailable["status"], unavailable["reason"]) == ("False", "PodlaneIsUp")
            assert "podlane.dev/Misconfigured" not in conditions
            told["Node", node["metadata"]["name"]] = [
                node["metadata"]["annotations"],
                node["spec"],
                unavailable,
            ]
        return told

    until(lambda: not lab.get("pods")["items"] and "10.244." not in str(lab.get("endpointslices")["items"]))
    until(lambda: all("NetworkUnavailable" in str(node["status"]) for node in lab.get("nodes")["items"]))
    before = versions()
    time.sleep(2.0)
    assert versions() == before


def test_a_pool_that_is_edited_moves_its_addresses_to_the_other_way(lab: Lab) -> None:
    def announce(*ways: str) -> None:
        patch = json.dumps({"spec": {"announce": list(ways)}})
        lab.kubectl("patch", "loadbalancerpool", "public", "--type=merge", "-p", patch)

    announce("l2")
    until(lambda: next_hops(lab, "203.0.113.1") == {"on-link"})
    until(lambda: lent(lab, "203.0.113.1") and lent(lab, "2001:db8:77::1"))
    announce("bgp")
    until(lambda: next_hops(lab, "203.0.113.1") == BOTH and not lent(lab, "203.0.113.1"))
    lab.kubectl("delete", "service", "every")
    until(lambda: next_hops(lab, "203.0.113.1") == next_hops(lab, "2001:db8:77::1") == set())
    lab.kubectl("delete", "loadbalancerpool", "public")
    until(
        lambda: (
            not lab.get("service", "local")["metadata"].get("annotations", {}).get("podlane.dev/announced-by")
        )
    )
