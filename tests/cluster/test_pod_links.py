"""What a pod asks of its own link: host ports and bandwidth, through the kubelet and the CNI plugin."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Lab, until

PODS = """
apiVersion: v1
kind: Pod
metadata:
  name: held
  annotations: {kubernetes.io/ingress-bandwidth: 10M, kubernetes.io/egress-bandwidth: 5M}
spec:
  nodeName: node-1
  containers: [{name: c, image: absent, ports: [{containerPort: 80, hostPort: 8088}]}]
"""


@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_host_ports_answer_on_the_node_and_bandwidth_is_held(lab: Lab, mode: str) -> None:
    lab.up("--nodes", "2", "--set", f"link.mode={mode}", "-f", "-", input=PODS)
    node = lab.get("node", "node-1")["status"]["addresses"]
    for address in (a["address"] for a in node if a["type"] == "InternalIP"):
        host = f"[{address}]" if ":" in address else address
        assert lab.outside("curl", "-s", "-m2", f"http://{host}:8088/hostname").stdout == "held"
    shaped = lab.node("node-1", "tc", "qdisc", "show").stdout
    assert "rate 10Mbit" in shaped
    assert "rate 5Mbit" in shaped
    lab.check()
    lab.kubectl("delete", "pod", "held")
    until(lambda: "tbf" not in lab.node("node-1", "tc", "qdisc", "show").stdout)
    host = node[0]["address"]
    assert lab.outside("curl", "-s", "-m2", f"http://{host}:8088/", check=False).returncode == 7


def test_a_pod_with_a_bad_bandwidth_waits_and_says_why(lab: Lab) -> None:
    bad = PODS.replace("10M", "plenty")
    waiting = lab.up("--nodes", "1", "--timeout", "4s", "-f", "-", input=bad, check=False)
    assert waiting.returncode == 1
    assert "held" in waiting.stderr
    events = lab.kubectl("get", "events", "-o", "wide").stdout
    assert "plenty" in events
    lab.kubectl("delete", "pod", "held", "--timeout=20s")
