"""What explain tells and what trace shows are the same way, in a lab of two racks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import ROOT, Lab

EXTRA = """
apiVersion: v1
kind: Pod
metadata: {name: udp, labels: {app: udp}}
spec: {nodeName: node-2, containers: [{name: c, image: absent, ports: [{containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: udp}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: udp}
  ports: [{port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec: {nodeName: node-2, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: far}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: guarded}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  loadBalancerSourceRanges: [198.51.100.0/24, "2001:db8:100::/64"]
  selector: {app: far}
  ports: [{port: 8000, targetPort: 80}]
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    extra = tmp_path_factory.mktemp("observe") / "extra.yaml"
    extra.write_text(EXTRA)
    made = Lab(f"to{os.getpid()}")
    made.up("--nodes", "2", "--set", "fabric.racks=2", "-f", str(extra))
    yield made
    made.down()


def ask(lab: Lab, command: str, *arguments: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(
        lab.podlane(command, "--lab", lab.name, *arguments, "-o", "json").stdout
    )
    return answer


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("source", "destination", "verdict"),
    [
        ("pod/near", "pod/far:80", "delivered"),
        ("pod/near", "svc/far:80", "delivered"),
        ("pod/near", "svc/udp:53", "delivered"),
        ("pod/far", "svc/far", "delivered"),
        ("node/node-1", "svc/far", "delivered"),
        ("node/node-2", "svc/far", "delivered"),
        ("node/node-1", "pod/far", "delivered"),
        ("outside", "svc/far", "delivered"),
        ("outside", "svc/guarded", "delivered"),
        ("pod/near", "svc/far:81", "refused"),
        ("outside", "pod/far", "no route"),
    ],
)
def test_explain_and_trace_agree(
    shared: Lab, source: str, destination: str, verdict: str, family: str
) -> None:
    told = ask(shared, "explain", source, destination, "--family", family)
    seen = ask(shared, "trace", source, destination, "--family", family)
    assert (told["verdict"], seen["verdict"]) == (verdict, verdict), (told["why"], seen["why"])
    assert (told["address"], told["port"]) == (seen["address"], seen["port"])
    wrapped = any(stage["stage"] == "encapsulation" for stage in told["stages"])
    assert wrapped == any(hop["outer"] for hop in seen["hops"] if hop["leg"] == "request")
    devices = {r["row"]["device"] for s in told["stages"] for r in s["rows"] if r.get("table") == "routes"}
    assert devices <= {hop["link"] for hop in seen["hops"]}
    if verdict == "delivered":
        arrived = [hop for hop in seen["hops"] if hop["leg"] == "request"][-1]
        assert f"{arrived['place']} on node-2 gets it" in told["why"]
        if "itself" not in told["why"] and "gets it from node" not in told["why"]:
            assert f"from {arrived['source'].rpartition(':')[0].strip('[]')}" in told["why"]


def test_who_is_not_in_the_source_ranges_gets_no_answer(shared: Lab) -> None:
    (report,) = ask(shared, "services", "guarded")["items"]
    for entry in report["entries"]:
        guarded = entry["kind"] == "load balancer"
        assert (entry["sources"] is not None) == guarded
        if guarded:
            where = f"[{entry['address']}]:8000" if ":" in entry["address"] else f"{entry['address']}:8000"
            told, seen = (ask(shared, command, "pod/near", where) for command in ("explain", "trace"))
            assert (told["verdict"], seen["verdict"]) == ("dropped", "dropped"), (told["why"], seen["why"])
            assert "loadBalancerSourceRanges" in told["why"]


def test_services_says_what_each_node_chooses(shared: Lab) -> None:
    (report,) = ask(shared, "services", "far")["items"]
    assert {(e["node"], e["state"], e["target"]) for e in report["endpoints"]} == {
        ("node-2", "ready", "default/pod/far")
    }
    assert [c["nodes"] for c in report["choices"]] == [["node-1", "node-2"]] * 2
    shown = shared.podlane("services", "--lab", shared.name).stdout
    assert "default/empty" in shown
    missing = shared.podlane("services", "fra", "--lab", shared.name, check=False)
    assert missing.returncode == 2
    assert "did you mean 'far'" in missing.stderr


def test_a_service_without_endpoints_is_refused_on_the_senders_node(shared: Lab) -> None:
    told, seen = (ask(shared, command, "pod/near", "svc/empty") for command in ("explain", "trace"))
    assert told["verdict"] == seen["verdict"] == "refused"
    assert "by node/node-1" in seen["why"]


def test_text_is_for_people(shared: Lab) -> None:
    told = shared.podlane("explain", "--lab", shared.name, "pod/near", "svc/far").stdout
    assert told.splitlines()[-1].startswith("delivered: default/pod/far on node-2")
    seen = shared.podlane("trace", "--lab", shared.name, "pod/near", "svc/far").stdout
    assert "* DNAT" in seen
    assert "* wrapped: VXLAN 85" in seen
    assert seen.splitlines()[-1].startswith("delivered: answered by default/pod/far")


def test_another_cluster_is_explained_by_its_kubeconfig(shared: Lab) -> None:
    told = shared.podlane("explain", "--kubeconfig", shared.kubeconfig, "pod/near", "svc/far", "-o", "json")
    assert json.loads(told.stdout)["verdict"] == "delivered"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain", "pod/naer", "svc/far"], "did you mean 'near'?"),
        (["explain", "svc/far", "pod/near"], "a service sends nothing"),
        (["trace", "pod/near", "svc/far:http"], "has no port named 'http'"),
        (["trace", "pod/near", "node/node-1"], "declares no port"),
        (["trace", "192.0.2.1", "svc/far"], "nothing of this lab has that address"),
        (["explain", "pod/near", "pod/far", "--context", "x"], "not both"),
    ],
)
def test_nonsense_is_refused_with_status_2(shared: Lab, arguments: list[str], words: str) -> None:
    refused = shared.podlane(*arguments, "--lab", shared.name, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert words in refused.stderr


def test_check_tells_what_fails_and_how_to_look_further(shared: Lab) -> None:
    rules = "table inet broken { chain c { type filter hook forward priority 0; tcp dport 80 drop; }; }"
    shared.node("node-2", "nft", rules)
    try:
        refused = shared.podlane("check", shared.name, "--timeout", "300ms", check=False)
        assert refused.returncode == 1
        assert "FAILED pod-pod-cross-node: default/pod/near -> default/pod/far:80" in refused.stdout
        assert f"podlane explain --lab {shared.name} default/pod/near" in refused.stdout
        seen = ask(shared, "trace", "pod/near", "pod/far", "--timeout", "300ms")
        assert seen["verdict"] == "dropped"
        assert "last seen in node/node-2, link plvxlan (in)" in seen["why"]
    finally:
        shared.node("node-2", "nft", "delete table inet broken")
    shared.check()


def test_the_examples_say_what_is_true(lab: Lab) -> None:
    """What the comments of examples/ promise."""
    lab.up("--nodes", "3", "-f", str(ROOT / "examples"))
    name = lab.exec("client", "sh", "-c", "curl -s http://$WEB_SERVICE_HOST/hostname").stdout
    assert name in ("web-1", "web-2")
    answer = json.loads(
        lab.podlane(
            "exec", "--lab", lab.name, "two-containers", "-c", "caller", "--", "cat", "/tmp/answer"
        ).stdout
    )
    assert (answer["pod"], answer["client"]) == ("two-containers", "127.0.0.1")
    beside = json.loads(
        lab.exec("client", "sh", "-c", "curl -s http://$NODE_WATCH_SERVICE_HOST:9100/").stdout
    )
    client = lab.get("pod", "client")
    assert beside["node"] == client["spec"]["nodeName"]
    assert "53 59" in lab.kubectl("logs", "-l", "job-name=primes").stdout
    assert lab.outside("curl", "-s", "http://172.30.1.11:8000/hostname").stdout.startswith("shop-")
    assert lab.outside("curl", "-s", "http://172.30.240.10:8000/hostname").stdout.startswith("front-")
    port = lab.get("service", "tomcat")["spec"]["ports"][0]["nodePort"]
    assert lab.outside("curl", "-s", f"http://172.30.1.11:{port}/hostname").stdout.startswith("tomcat-")
