"""Addresses of a LoadBalancerPool, reached from outside: a lab, and another beside it with the same pool."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import PODLANE, Lab, traces_of, until
from tests.cluster.test_restarts import service_pid

MANIFEST = """
apiVersion: podlane.dev/v1alpha1
kind: LoadBalancerPool
metadata: {name: public}
spec: {addresses: [172.30.240.10-172.30.240.12, "fd00:172:30::f0:10/124"]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: example.com/web:1, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: kept, annotations: {podlane.dev/load-balancer-ips: 172.30.240.12}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
"""

# A new connection every 20 ms; prints what failed, and which nodes' pods answered.
PROBE = """
import http.client, json, sys, time
end, failed, nodes = time.monotonic() + float(sys.argv[2]), [], set()
while time.monotonic() < end:
    c = http.client.HTTPConnection(sys.argv[1], 80, timeout=2)
    try:
        c.request("GET", "/")
        nodes.add(json.loads(c.getresponse().read())["node"])
    except OSError as error:
        failed.append(str(error))
    finally:
        c.close()
    time.sleep(0.02)
print(json.dumps([failed, sorted(nodes)]))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(f"t{os.getpid()}-pools")
    file = tmp_path_factory.mktemp("pools") / "pools.yaml"
    file.write_text(MANIFEST)
    try:
        made.up("--nodes", "3", "-f", str(file))
        yield made
    finally:
        made.down()
        assert traces_of(made.name) == []


def vips(lab: Lab, name: str = "web") -> list[str]:
    found = lab.get("service", name)["status"]["loadBalancer"].get("ingress", [])
    return [each["ip"] for each in found]


def announcer(lab: Lab, where: str) -> str:
    told = json.loads(lab.podlane("services", "web", "--lab", lab.name, "-o", "json").stdout)
    return next(e["announcedBy"] for e in told["items"][0]["entries"] if e["address"] == where)


def holders(lab: Lab, where: str) -> list[str]:
    """The nodes on whose uplink an address is."""

    def has(node: str) -> bool:
        return f" {where}/" in lab.node(node, "ip", "-o", "address", "show", "dev", "eth0").stdout

    return [f"node-{n}" for n in (1, 2, 3) if has(f"node-{n}")]


def ask(lab: Lab, where: str) -> Any:
    """The responder's answer as seen from outside, None for none."""
    host = f"[{where}]" if ":" in where else where
    answer = lab.outside("curl", "-s", "-m", "2", f"http://{host}/", check=False)
    return json.loads(answer.stdout) if answer.returncode == 0 else None


def test_outside_reaches_what_the_pool_gave(lab: Lab) -> None:
    assert vips(lab) == ["172.30.240.10", "fd00:172:30::f0:10"]
    assert vips(lab, "kept") == ["172.30.240.12"]
    for where in vips(lab):
        until(lambda w=where: holders(lab, w) == [announcer(lab, w)])
        assert ask(lab, where)
    until(lambda: len(holders(lab, "172.30.240.12")) == 1)
    # externalTrafficPolicy Local: the answering node's own pod, which sees who asks.
    answer = ask(lab, "172.30.240.12")
    assert answer["client"] == "198.51.100.10"
    assert [answer["node"]] == holders(lab, "172.30.240.12")
    # A port that nobody serves is refused, and nothing of the node itself is shown there.
    listener = (
        "import socket,time; s=socket.create_server(('0.0.0.0', 81)); print(1, flush=True); time.sleep(60)"
    )
    node = announcer(lab, "172.30.240.10")
    command = [str(PODLANE), "node", "--lab", lab.name, node, "--", "python3", "-c", listener]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            refused = lab.outside("curl", "-s", "-m", "2", "http://172.30.240.10:81/", check=False)
        finally:
            process.terminate()
    assert refused.returncode == 7
    kinds = {check["kind"] for check in lab.check()["checks"]}
    assert "outside-loadbalancer" in kinds


def test_looking(lab: Lab) -> None:
    text = lab.podlane("services", "web", "--lab", lab.name).stdout
    node = announcer(lab, "172.30.240.10")
    assert f"172.30.240.10:80/TCP, pool public, {node} answers for it" in text
    story = lab.podlane("explain", "outside", "svc/web:80", "--lab", lab.name).stdout
    assert f"carries it to {node}, which answers ARP for 172.30.240.10" in story
    story = lab.podlane("explain", "outside", "[fd00:172:30::f0:10]:80", "--lab", lab.name).stdout
    assert "which answers NDP for fd00:172:30::f0:10" in story
    traced = json.loads(
        lab.podlane("trace", "outside", "172.30.240.10:80", "--lab", lab.name, "-o", "json").stdout
    )
    assert traced["verdict"] == "delivered"
    status = lab.get("loadbalancerpool", "public")["status"]
    assert [status["assignedIPv4"], status["availableIPv4"]] == [2, 1]
    reasons = {e["reason"] for e in lab.get("events")["items"] if e["involvedObject"]["name"] == "web"}
    assert {"IPAllocated", "nodeAssigned"} <= reasons


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_a_killed_agent_is_not_noticed(lab: Lab, family: int) -> None:
    where = vips(lab)[family]
    node = until(lambda: announcer(lab, where))
    command = [str(PODLANE), "outside", "--lab", lab.name, "--", "python3", "-c", PROBE, where, "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as probe:
        time.sleep(1.0)
        os.kill(service_pid(lab, f"agent/{node}"), signal.SIGKILL)
        output, _ = probe.communicate(timeout=30)
    failed, nodes = json.loads(output)
    assert failed == []
    assert nodes == ["node-1", "node-2", "node-3"]
    until(lambda: holders(lab, where) == [node])


def test_a_killed_control_process_gives_no_address_twice(lab: Lab) -> None:
    before = [vips(lab), vips(lab, "kept")]
    os.kill(service_pid(lab, "control"), signal.SIGKILL)
    until(lambda: lab.kubectl("get", "--raw", "/readyz", check=False).returncode == 0)
    lab.kubectl("create", "service", "loadbalancer", "more", "--tcp=80:8080")
    assert until(lambda: vips(lab, "more")) == ["172.30.240.11"]
    assert [vips(lab), vips(lab, "kept")] == before
    lab.kubectl("delete", "service", "more")


def test_another_beside_it_has_the_same_pool(lab: Lab, tmp_path: Path) -> None:
    other = Lab(f"t{os.getpid()}-pools2")
    (tmp_path / "pools.yaml").write_text(MANIFEST)
    try:
        other.up("--nodes", "1", "-f", str(tmp_path / "pools.yaml"))
        assert vips(other) == vips(lab)
        until(lambda: ask(other, vips(other)[0]))
        uid = {each.name: each.get("namespace", "default")["metadata"]["uid"] for each in (lab, other)}
        assert len(set(uid.values())) == 2
    finally:
        other.down()
    assert traces_of(other.name) == []
    assert ask(lab, vips(lab)[0])


def test_another_node_takes_over_from_one_that_is_cut_off(lab: Lab) -> None:
    where = vips(lab)[0]
    node = until(lambda: announcer(lab, where))
    lab.node(node, "ip", "link", "set", "eth0", "down")
    try:
        until(lambda: announcer(lab, where) not in ("", node))
        # Some connections go to the pod that is cut off, too; the others answer.
        for each in vips(lab):
            until(lambda w=each: ask(lab, w))
    finally:
        lab.node(node, "ip", "link", "set", "eth0", "up")
        for gateway in ("172.30.1.1", "fd00:172:30::1:1"):
            version = "-6" if ":" in gateway else "-4"
            lab.node(node, "ip", version, "route", "replace", "default", "via", gateway)
    until(lambda: holders(lab, where) == [node])
    until(lambda: announcer(lab, where) == node)
    for each in vips(lab):
        until(lambda w=each: ask(lab, w))


def test_what_goes_is_given_back(lab: Lab) -> None:
    where = vips(lab)
    lab.kubectl("delete", "service", "web")
    until(lambda: not any(holders(lab, w) for w in where))
    assert ask(lab, where[0]) is None
    until(lambda: lab.get("loadbalancerpool", "public")["status"]["assignedIPv4"] == 1)
    assert holders(lab, "172.30.240.12")
    lab.kubectl("delete", "loadbalancerpool", "public")
    # Without a pool the nodes' own addresses serve.
    until(lambda: vips(lab, "kept") == ["172.30.1.11", "172.30.1.12", "172.30.1.13"])
    until(lambda: not holders(lab, "172.30.240.12"))
    assert ask(lab, "172.30.1.11")
