"""Services as clients meet them, in a lab of two racks: every kind of endpoint, policy and refusal."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.conftest import Lab, until

FAMILIES = ("IPv4", "IPv6")

# Pods of known places: a and b on node-1 and node-2 (racks 1 and 2), node-3 has no endpoint.
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger}
spec: {nodeName: node-3, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, labels: {app: web}}
spec:
  nodeName: node-1
  containers: [{name: c, image: absent, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: b, labels: {app: web}}
spec:
  nodeName: node-2
  containers: [{name: c, image: absent, ports: [{containerPort: 80}, {containerPort: 53, protocol: UDP}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: on-host, labels: {app: on-host}}
spec:
  nodeName: node-2
  hostNetwork: true
  containers: [{name: c, image: absent, ports: [{containerPort: 9100}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports:
    - {name: http, port: 80, nodePort: 30080}
    - {name: dns, port: 53, protocol: UDP, nodePort: 30053}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  ipFamilyPolicy: PreferDualStack
  sessionAffinity: ClientIP
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: outward}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, nodePort: 30090}]
---
apiVersion: v1
kind: Service
metadata: {name: inward}
spec:
  internalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: nobody}
  ports: [{port: 80, nodePort: 30099}]
---
apiVersion: v1
kind: Service
metadata: {name: on-host}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: on-host}, ports: [{port: 80, targetPort: 9100}]}
---
apiVersion: v1
kind: Service
metadata: {name: weighed, annotations: {podlane.dev/weights: "a=0, *=1"}}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: own}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: self}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: self}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: self, labels: {app: self}}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
"""

REFUSED = 7  # curl: failed to connect
NO_ANSWER = 28  # curl: timed out


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    file = tmp_path_factory.mktemp("services") / "services.yaml"
    file.write_text(MANIFEST)
    made = Lab(f"ts{os.getpid()}")
    made.up("--nodes", "3", "--set", "fabric.racks=2", "-f", str(file))
    yield made
    made.down()


def host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def address_of(lab: Lab, service: str, family: str) -> str:
    spec = lab.get("service", service)["spec"]
    return host(spec["clusterIPs"][spec["ipFamilies"].index(family)])


def node_address(lab: Lab, node: str, family: str) -> str:
    addresses = [
        a["address"] for a in lab.get("node", node)["status"]["addresses"] if a["type"] == "InternalIP"
    ]
    return host(next(a for a in addresses if (":" in a) == (family == "IPv6")))


def answers(where: Any, url: str, times: int = 1) -> tuple[Counter[str], int]:
    """(who answered how often, curl's status of the last try). where: what runs a command, by its words."""
    script = f"for i in $(seq {times}); do curl -g -s -m1 {url}/hostname; s=$?; echo; done; exit $s"
    done = where("sh", "-c", script)
    return Counter(done.stdout.split()), done.returncode


def from_pod(lab: Lab, pod: str) -> Any:
    return lambda *command: lab.exec(pod, *command, check=False)


def from_outside(lab: Lab) -> Any:
    return lambda *command: lab.outside(*command, check=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_endpoint_is_used_from_everywhere(shared: Lab, family: str) -> None:
    url = f"http://{address_of(shared, 'web', family)}"
    for pod in ("client", "stranger", "a"):
        found, _ = answers(from_pod(shared, pod), url, 40)
        assert (set(found), found.total()) == ({"a", "b"}, 40), pod
    for node in ("node-1", "node-2", "node-3"):
        at_node = f"http://{node_address(shared, node, family)}:30080"
        found, _ = answers(from_outside(shared), at_node, 30)
        assert (set(found), found.total()) == ({"a", "b"}, 30), node


@pytest.mark.parametrize("family", FAMILIES)
def test_what_nobody_serves_is_refused_and_what_is_no_service_gives_no_answer(
    shared: Lab, family: str
) -> None:
    web = address_of(shared, "web", family)
    client = from_pod(shared, "client")
    assert answers(client, f"http://{address_of(shared, 'nobody', family)}") == (Counter(), REFUSED)
    assert answers(client, f"http://{web}:81") == (Counter(), REFUSED)
    at_node = f"http://{node_address(shared, 'node-3', family)}:30099"
    assert answers(from_outside(shared), at_node) == (Counter(), REFUSED)
    unallocated = {"IPv4": "10.96.255.77", "IPv6": "[fd00:10:96::ffee]"}[family]
    assert answers(client, f"http://{unallocated}") == (Counter(), NO_ANSWER)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pod_reaches_itself_by_its_service(shared: Lab, family: str) -> None:
    url = f"http://{address_of(shared, 'self', family)}"
    assert answers(from_pod(shared, "self"), url, 3) == (Counter(self=3), 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_keeps_a_client_with_one_pod(shared: Lab, family: str) -> None:
    found, _ = answers(from_pod(shared, "client"), f"http://{address_of(shared, 'sticky', family)}", 20)
    assert list(found.values()) == [20]


@pytest.mark.parametrize("family", FAMILIES)
def test_external_policy_local_keeps_the_clients_address(shared: Lab, family: str) -> None:
    for node, pod in (("node-1", "a"), ("node-2", "b")):
        url = f"http://{node_address(shared, node, family)}:30090"
        assert answers(from_outside(shared), url, 5) == (Counter({pod: 5}), 0)
        seen = json.loads(shared.outside("curl", "-g", "-s", "-m2", url).stdout)
        assert seen["client"] == {"IPv4": "198.51.100.10", "IPv6": "2001:db8:100::a"}[family]
    at_none = f"http://{node_address(shared, 'node-3', family)}:30090"
    assert answers(from_outside(shared), at_none) == (Counter(), NO_ANSWER)
    # Inside the cluster the policy does not matter.
    found, _ = answers(from_pod(shared, "stranger"), f"http://{address_of(shared, 'outward', family)}", 30)
    assert set(found) == {"a", "b"}


@pytest.mark.parametrize("family", FAMILIES)
def test_internal_policy_local_stays_on_the_node(shared: Lab, family: str) -> None:
    url = f"http://{address_of(shared, 'inward', family)}"
    assert answers(from_pod(shared, "client"), url, 10) == (Counter(a=10), 0)
    assert answers(from_pod(shared, "stranger"), url) == (Counter(), NO_ANSWER)


@pytest.mark.parametrize("family", FAMILIES)
def test_endpoints_in_the_nodes_own_network(shared: Lab, family: str) -> None:
    url = f"http://{address_of(shared, 'on-host', family)}"
    for where in (from_pod(shared, "client"), lambda *c: shared.node("node-2", *c, check=False)):
        assert answers(where, url) == (Counter({"node-2": 1}), 0) or answers(where, url)[0].total() == 1


def test_slices_people_write_are_served(shared: Lab) -> None:
    service = shared.get("service", "own")["spec"]["clusterIP"]
    client = from_pod(shared, "client")
    assert answers(client, f"http://{service}") == (Counter(), REFUSED)
    pod = shared.get("pod", "b")["status"]["podIP"]
    piece = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "own-1", "labels": {"kubernetes.io/service-name": "own"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 80}],
        "endpoints": [{"addresses": [pod]}],
    }
    shared.podlane("apply", "--lab", shared.name, "-f", "-", input=json.dumps(piece))
    until(lambda: answers(client, f"http://{service}") == (Counter(b=1), 0))
    shared.kubectl("delete", "endpointslice", "own-1")
    until(lambda: answers(client, f"http://{service}") == (Counter(), REFUSED))


def test_a_headless_service_has_slices_and_no_rows(shared: Lab) -> None:
    pieces = shared.get("endpointslices", "-l", "kubernetes.io/service-name=headless")["items"]
    assert sum(len(p["endpoints"]) for p in pieces) == 2
    status = json.loads(shared.podlane("status", shared.name, "-o", "json").stdout)
    assert not any(n["agent"]["failures"] for n in status["nodes"])


ASKER = """
import socket, sys, time
# One datagram after another from one socket: its flow must follow the endpoints.
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(0.2)
end = time.monotonic() + float(sys.argv[2])
last, missed = "", 0
while time.monotonic() < end:
    try:
        s.sendto(b"who", (sys.argv[1], 53))
        last, missed = s.recv(4096).decode(), 0
    except OSError:
        missed += 1
    time.sleep(0.01)
print(missed, last)
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_datagram_flow_follows_its_endpoints(shared: Lab, family: str) -> None:
    """The pod that a flow was bound to goes while the sender never pauses; a stale flow is no black hole."""
    address = address_of(shared, "web", family).strip("[]")
    shared.kubectl("delete", "pod", "b", "--wait=false")
    output = shared.exec("client", "python3", "-c", ASKER, address, "3").stdout
    missed, _, answer = output.partition(" ")
    assert int(missed) == 0
    assert json.loads(answer)["pod"] == "a"
    shared.podlane("apply", "--lab", shared.name, "-f", "-", input=MANIFEST)
    shared.kubectl("wait", "--for=condition=Ready", "pod/b", "--timeout=20s")
    shared.kubectl("delete", "pod", "a", "--wait=false")
    output = shared.exec("stranger", "python3", "-c", ASKER, address, "3").stdout
    missed, _, answer = output.partition(" ")
    assert int(missed) == 0
    assert json.loads(answer)["pod"] == "b"
    shared.podlane("apply", "--lab", shared.name, "-f", "-", input=MANIFEST)
    shared.kubectl("wait", "--for=condition=Ready", "pod/a", "--timeout=20s")


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_by_the_names_of_pods(shared: Lab, family: str) -> None:
    for pod in ("client", "stranger"):
        found, _ = answers(from_pod(shared, pod), f"http://{address_of(shared, 'weighed', family)}", 12)
        assert found == Counter(b=12)


@pytest.mark.parametrize("family", FAMILIES)
def test_flows_tell_who_talks_to_whom_through_what(shared: Lab, family: str) -> None:
    where = address_of(shared, "sticky", family)
    found, _ = answers(from_pod(shared, "client"), f"http://{where}", 2)
    (pod,) = found
    command = ("flows", "--lab", shared.name, "--service", "sticky", "--pod", "client", "-o", "json")
    items = json.loads(shared.podlane(*command).stdout)["items"]
    mine = [each for each in items if each["family"] == family]
    assert len(mine) >= 2
    for each in mine:
        assert each["source"]["name"] == "default/pod/client"
        assert each["destination"]["name"] == "default/svc/sticky"
        assert each["endpoint"]["name"] == f"default/pod/{pod}"
        assert min(each["bytesSent"], each["bytesAnswered"]) > 100
    (told,) = json.loads(shared.podlane("services", "sticky", "--lab", shared.name, "-o", "json").stdout)[
        "items"
    ]
    (end,) = [e for e in told["endpoints"] if e["address"] == mine[0]["endpoint"]["address"]]
    assert end["bytesIn"] >= sum(each["bytesSent"] for each in mine)
    lines = shared.podlane("flows", "--lab", shared.name, "--pod", "client").stdout.splitlines()
    assert lines[0].startswith("NODE")
    assert len(lines) > 2


def test_flows_of_what_is_not_there_are_refused(shared: Lab) -> None:
    done = shared.podlane("flows", "--lab", shared.name, "--service", "stiky", check=False)
    assert (done.returncode, done.stderr.count("did you mean 'sticky'")) == (2, 1)


def test_the_whole_matrix_agrees(shared: Lab) -> None:
    shared.check()


def test_services_of_a_range_added_while_the_cluster_runs(shared: Lab) -> None:
    """As upstream's "should create Services and serve on different Service CIDRs"."""
    manifest = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "more"},
        "spec": {"cidrs": ["10.97.0.0/24"]},
    }
    client = from_pod(shared, "client")
    shared.kubectl("apply", "-f", "-", input=json.dumps(manifest))
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "elsewhere"},
        "spec": {"selector": {"app": "web"}, "clusterIP": "10.97.0.10", "ports": [{"port": 80}]},
    }
    shared.kubectl("apply", "-f", "-", input=json.dumps(service))
    until(lambda: set(answers(client, "http://10.97.0.10", 10)[0]) == {"a", "b"})
    assert shared.get("ipaddress", "10.97.0.10")["spec"]["parentRef"]["name"] == "elsewhere"
    until(lambda: answers(client, "http://10.97.0.99") == (Counter(), NO_ANSWER))
    shared.kubectl("delete", "--wait=false", "servicecidr", "more")

    def condition() -> str:
        return str(shared.get("servicecidr", "more")["status"]["conditions"][0]["reason"])

    until(lambda: condition() == "Terminating")
    shared.kubectl("delete", "service", "elsewhere")
    until(lambda: shared.kubectl("get", "servicecidr", "more", check=False).returncode)


def test_a_balancer_asks_each_node_whether_it_has_endpoints(shared: Lab) -> None:
    spec = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "ipFamilyPolicy": "PreferDualStack",
        "loadBalancerClass": "example.org/none",
        "selector": {"app": "web"},
        "ports": [{"port": 80}],
    }
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "balanced"}, "spec": spec}
    shared.kubectl("apply", "-f", "-", input=json.dumps(body))
    port = shared.get("service", "balanced")["spec"]["healthCheckNodePort"]

    def says(node: str, family: str) -> str:
        url = f"http://{node_address(shared, node, family)}:{port}/healthz"
        return shared.outside(
            "curl", "-gsm2", "-o", "/dev/null", "-w", "%{http_code}", url, check=False
        ).stdout

    for family in FAMILIES:
        for node, code in (("node-1", "200"), ("node-2", "200"), ("node-3", "503")):
            until(lambda node=node, code=code, family=family: says(node, family) == code)
    shared.kubectl("delete", "service", "balanced")
    until(lambda: says("node-1", "IPv4") == "000")


def test_what_a_service_cannot_have_is_an_event_at_it(shared: Lab) -> None:
    def body(name: str) -> str:
        spec = {"selector": {"app": "web"}, "externalIPs": ["203.0.113.77"], "ports": [{"port": 80}]}
        return json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})

    shared.kubectl("apply", "-f", "-", input=body("first"))
    until(lambda: shared.get("service", "first")["metadata"]["creationTimestamp"])
    spec = json.loads(body("second"))
    spec["spec"]["selector"] = {"app": "self"}
    shared.kubectl("apply", "-f", "-", input=json.dumps(spec))

    def events() -> list[Any]:
        found = shared.get("events", "--field-selector", "reason=AddressTaken")["items"]
        return [each["message"] for each in found]

    until(events)
    (message,) = events()
    assert message.startswith("203.0.113.77:80/TCP belongs to Service default/")
    for name in ("first", "second"):
        shared.kubectl("delete", "service", name)
