"""What people and Prometheus are told of a lab with BGP, services at the socket, and a controller."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from prometheus_client.metrics_core import Metric

from podlane.agent import metrics_page, report
from podlane.kernel import netns
from podlane.lab import agents
from podlane.lab import record as records
from podlane.lab.paths import LabPaths
from podlane.lab.rest import STRATEGIC_PATCH, Client
from tests.cluster.conftest import PODLANE, Lab, until
from tests.monitoring import RULES, alerts, documented, lint, names, parse, queries, wanted

NODES = ("node-1", "node-2")
ADDRESS = {"node-1": "172.30.1.11", "node-2": "172.30.1.12"}
PASSWORD = "bgp-hunter22"
MANIFEST = """
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec: {nodeName: node-1, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: node-2, containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{port: 80, nodePort: 30080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: to-web}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}, {podSelector: {matchLabels: {app: client}}}]}]
"""


class Outside:
    """Programs on the host beyond the cluster: a controller beside the one that leads, and Prometheus."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab, self.directory = lab, directory
        self._running: list[subprocess.Popen[bytes]] = []
        self._namespace = netns.open_pid(records.load(lab.name).pids["outside"])

    def start(self, *command: str) -> None:
        where = ("outside", "--lab", self.lab.name, "--")
        with (self.directory / f"{len(self._running)}.log").open("wb") as output:
            made = subprocess.Popen([str(PODLANE), *where, *command], stdout=output, stderr=output)
        self._running.append(made)

    def get(self, port: int, path: str) -> str:
        """ "" while nobody answers, or not as it should be."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            with netns.entered(self._namespace):
                connection.connect()
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.read().decode() if answer.status == 200 else ""
        except OSError:
            return ""
        finally:
            connection.close()

    def controller(self) -> None:
        """By the API's address in the fabric."""
        inside = (LabPaths(self.lab.name).node_run("node-1") / "kubeconfig").read_text()
        (address,) = set(re.findall(r"https://[^\s\"]+", inside))
        text = re.sub(r"https://[^\s\"]+", address, Path(self.lab.kubeconfig).read_text())
        kubeconfig = self.directory / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(text)
        self.start(
            str(PODLANE), "controller", "--kubeconfig", str(kubeconfig), "--metrics-address", "127.0.0.1:9586"
        )
        until(self.metrics)

    def metrics(self) -> str:
        return self.get(9586, "/metrics")

    def prometheus(self) -> None:
        """With the rules of deploy/; it scrapes every second."""
        jobs = [
            {
                "job_name": "podlane",
                "static_configs": [
                    {"targets": [f"{ADDRESS[node]}:9585"], "labels": {"instance": node}} for node in NODES
                ],
            },
            {"job_name": "podlane-controller", "static_configs": [{"targets": ["127.0.0.1:9586"]}]},
        ]
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config = self.directory / "prometheus.yaml"
        config.write_text(
            yaml.safe_dump({"global": every, "rule_files": [str(RULES)], "scrape_configs": jobs})
        )
        data = self.directory / "data"
        self.start(
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={data}",
            "--web.listen-address=127.0.0.1:9090",
        )

    def ask(self, path: str, **query: str) -> Any:
        """Of Prometheus' API: `data`."""
        answer = json.loads(self.get(9090, f"/api/v1/{path}?{urlencode(query)}") or "{}")
        assert answer.get("status") == "success", (query, answer)
        return answer["data"]

    def close(self) -> None:
        for each in self._running:
            each.terminate()
        for each in self._running:
            each.wait(20)
        os.close(self._namespace)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    made = Lab(f"observed{os.getpid()}")
    settings = ("backend.type=bgp", f"bgp.password={PASSWORD}", "services.mode=socket")
    try:
        made.up("--nodes", "2", *(w for s in settings for w in ("--set", s)), "-f", "-", input=MANIFEST)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def outside(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outside]:
    made = Outside(lab, tmp_path_factory.mktemp("outside"))
    try:
        made.prometheus()  # it takes five seconds before it looks for anything
        made.controller()
        yield made
    finally:
        made.close()


def told(lab: Lab, node: str, page: str = "/metrics") -> str:
    return agents.fetch(LabPaths(lab.name).agent_socket(node), page).decode()


def values(family: Metric) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in family.samples}


@pytest.fixture(scope="module")
def everything(lab: Lab, outside: Outside) -> dict[str, Metric]:
    """Every metric there is, by name; each page checked by itself."""
    found: dict[str, Metric] = {}
    for text in (
        *(told(lab, node) for node in NODES),
        *(told(lab, "node-2", f"/metrics/{page}") for page in ("services", "policies")),
        outside.metrics(),
        _of_other_backends(),
    ):
        lint(text)
        found |= parse(text)
    return found


def _of_other_backends() -> str:
    """What no agent of this lab has: the backend udp's."""
    proxy: Any = SimpleNamespace(counters=dict)
    return report.exposition(*metrics_page._datagrams(proxy))


def test_the_docs_have_every_metric_and_no_other(everything: dict[str, Metric]) -> None:
    assert documented() == {name: family.type for name, family in everything.items()}


def test_alerts_and_dashboard_name_what_is_there(everything: dict[str, Metric]) -> None:
    missing = wanted() - everything.keys()
    assert missing == set()
    assert names("rate(podlane_agent_nonsense_total[5m])") - everything.keys()


def test_an_agent_tells_what_it_does(lab: Lab) -> None:
    lab.kubectl("label", "service", "web", "seen=1")
    web = lab.get("service", "web")["spec"]["clusterIP"]
    lab.exec("client", "curl", "-sf", f"http://{web}/hostname")

    def found() -> dict[str, Metric] | None:
        metrics = parse(told(lab, "node-1"))
        timed = {s.labels["kind"] for s in metrics["podlane_agent_programming_duration_seconds"].samples}
        return metrics if {"Attachment", "Pod", "Service"} <= timed else None

    metrics = until(found)
    plain = {name: values(family).get(()) for name, family in metrics.items()}
    assert plain["podlane_agent_ready"] == 1
    assert plain["podlane_agent_attachments"] == 1
    assert plain["podlane_agent_pods_fail_closed"] == 0
    assert plain["podlane_agent_conntrack_entries_limit"] == int(
        Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()
    )
    assert values(metrics["podlane_agent_peers"]) == {("bgp", "down"): 0, ("bgp", "up"): 1}
    assert set(values(metrics["podlane_agent_bgp_session_up"]).values()) == {1}
    requests = values(metrics["podlane_agent_cni_requests_total"])
    assert requests["ADD", "0"] == 1
    api = values(metrics["podlane_agent_api_requests_total"])
    assert values(metrics["podlane_agent_watch_lists_total"])["Pod",] == 1
    assert api["watch", "pods", "200"] >= 1
    assert api["patch", "nodes", "200"] >= 1
    uses = values(metrics["podlane_agent_pod_addresses_in_use"])
    assert sorted(uses.values()) == [1, 1]
    assert values(metrics["podlane_agent_pod_addresses_free"])["10.244.0.0/24",] == 252
    # By then pods of the other node have been asked for, over the uplink.
    assert values(metrics["podlane_agent_network_transmit_bytes_total"])["eth0",] > 0
    info = metrics["podlane_build_info"].samples[0].labels
    assert info["version"] in lab.podlane("version").stdout


def test_what_somebody_else_changes_is_repaired_and_counted(lab: Lab) -> None:
    def repairs() -> float:
        return values(parse(told(lab, "node-2"))["podlane_agent_driver_repairs_total"]).get(("rtnl",), 0)

    before = repairs()
    lab.node("node-2", "ip", "route", "delete", lab.get("pod", "web")["status"]["podIP"])
    until(lambda: repairs() > before)


def test_services_and_policies_are_counted_when_somebody_asks(lab: Lab) -> None:
    node = lab.get("nodes", "node-2")["status"]["addresses"][0]["address"]
    lab.outside("curl", "-sf", f"http://{node}:30080/hostname")
    services = parse(told(lab, "node-2", "/metrics/services?namespace=default"))
    key = ("default", "web", "", "TCP", "IPv4")
    assert values(services["podlane_service_connections_sent_packets"])[key] >= 4
    assert values(services["podlane_service_connections_answered_bytes"])[key] > 100
    assert values(services["podlane_service_endpoints"])[key] == 1
    policies = parse(told(lab, "node-2", "/metrics/policies"))
    allowed = values(policies["podlane_policy_allowed_packets_total"])
    assert sum(n for labels, n in allowed.items() if labels[:3] == ("default", "to-web", "ingress")) >= 1
    dropped = ("no policy allows it",)
    before = values(policies["podlane_policy_dropped_packets_total"])[dropped]
    pod = lab.get("pod", "web")["status"]["podIP"]
    lab.node("node-1", "python3", "-c", _KNOCK.format(pod), check=False)
    policies = parse(told(lab, "node-2", "/metrics/policies"))
    assert values(policies["podlane_policy_dropped_packets_total"])[dropped] > before
    narrow = parse(told(lab, "node-2", "/metrics/policies?namespace=elsewhere"))
    assert values(narrow["podlane_policy_allowed_packets_total"]) == {}
    nothing = parse(told(lab, "node-2", "/metrics/services?namespace=elsewhere"))
    assert values(nothing["podlane_service_connections"]) == {}


# One SYN from a node that is no client of the policy.
_KNOCK = "import socket; s = socket.socket(); s.setblocking(False); s.connect_ex(('{}', 80))"


def test_a_question_that_is_none(lab: Lab) -> None:
    with pytest.raises(Exception, match=r"\?namespace=NS, and no service"):
        told(lab, "node-1", "/metrics/services?service=web")


def test_the_status_of_a_cluster_is_what_its_api_says(lab: Lab) -> None:
    def asked(check: bool = True) -> dict[str, Any]:
        command = (
            "status",
            "--kubeconfig",
            lab.kubeconfig,
            "--agent-socket",
            str(socket_of_one),
            "-o",
            "json",
        )
        found: dict[str, Any] = json.loads(lab.podlane(*command, check=check).stdout)
        return found

    socket_of_one = LabPaths(lab.name).agent_socket("node-1")

    def calm() -> dict[str, Any] | None:
        """A session that was not there at the agent's start is no trouble at its second look."""
        found = asked(check=False)
        said = [c["type"] for node in found["nodes"] for c in node["conditions"]]
        return found if said.count("podlane.dev/Degraded") == len(NODES) else None

    status = until(calm)
    assert (status["kind"], status["ready"], status["problems"]) == ("ClusterStatus", True, [])
    version = lab.podlane("version").stdout.split()[-1]
    for node in status["nodes"]:
        assert (node["agent"]["version"], node["agent"]["backend"]) == (version, "bgp")
        conditions = {c["type"]: c["status"] for c in node["conditions"]}
        assert conditions["NetworkUnavailable"] == conditions["podlane.dev/Degraded"] == "False"
    assert len({node["agent"]["config"] for node in status["nodes"]}) == 1
    assert status["controller"]["leader"]
    assert status["here"]["node"] == "node-1"
    text = lab.podlane("status", "--kubeconfig", lab.kubeconfig, "--agent-socket", str(socket_of_one)).stdout
    assert "agent here (node-1): generation" in text
    trouble = {"type": "podlane.dev/Nonsense", "status": "True", "reason": "Tried", "message": "by a test"}
    with Client.from_kubeconfig(lab.kubeconfig) as client:
        body = {"status": {"conditions": [trouble]}}
        client.request("PATCH", "/api/v1/nodes/node-2/status", body, content_type=STRATEGIC_PATCH)
    assert asked(check=False)["problems"] == ["node node-2: podlane.dev/Nonsense Tried: by a test"]


# --- bug reports ----------------------------------------------------------------------------------

PLANTED = """
apiVersion: v1
kind: Secret
metadata: {name: planted}
stringData: {value: secret-hunter22}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: planted}
data: {value: configmap-hunter22}
---
apiVersion: v1
kind: Pod
metadata: {name: planted, annotations: {example.com/note: annotation-hunter22}}
spec:
  containers:
    - name: c
      image: absent
      command: [sleep, "1000", argument-hunter22]
      env: [{name: DB_PASSWORD, value: env-hunter22}]
"""


def test_a_bug_report_has_what_helps_and_no_secret(lab: Lab, tmp_path: Path) -> None:
    paths = LabPaths(lab.name)
    key = base64.b64encode(b"wireguard key of 32 bytes, known").decode()
    (paths.node_state("node-1") / "wireguard.key").write_text(key + "\n")
    token = (paths.pki / "token").read_text()
    of_node = re.search(r"token:\s*(\S+)", (paths.node_run("node-1") / "kubeconfig").read_text())
    assert of_node is not None
    with (paths.node_run("node-1") / "agent.log").open("a") as log:
        log.write(f"told {key}, {token}, {of_node[1]} and {PASSWORD} without a name\n")
        log.write(
            "Authorization: Bearer bearer-hunter22\npassword=named-hunter22\n"
            "and of the environment: env2-hunter22\n"
        )
    planted = lab.kubectl("apply", "--validate=false", "-f", "-", input=PLANTED)
    assert planted.returncode == 0
    where = tmp_path / "report.tar.gz"
    environment = {**os.environ, "MY_TOKEN": "env2-hunter22"}
    done = lab.podlane("bugreport", lab.name, "-o", str(where), "--connections", env=environment)
    assert str(where) in done.stdout
    assert where.stat().st_mode & 0o777 == 0o600
    found = unpacked(where)
    secrets = [key, base64.b64decode(key).hex(), token, of_node[1], base64.b64encode(token.encode()).decode()]
    for name, text in found.items():
        assert "hunter22" not in text, name
        assert not any(each in text for each in secrets), name
    manifest = json.loads(found["MANIFEST.json"])
    assert (manifest["apiVersion"], manifest["kind"]) == ("podlane.dev/v1alpha1", "BugReport")
    assert [entry for entry in manifest["files"] if "error" in entry] == []
    for name in NODES:
        tables = json.loads(found[f"nodes/{name}/agent/tables.json"])["tables"]
        assert "(removed)" in [each["row"]["password"] for each in tables["bgp-peers"]]
        assert 'password "(removed)"' in found[f"nodes/{name}/bird/bird.conf"]
        assert "Established" in found[f"nodes/{name}/bird/protocols.txt"]
        assert "table ip podlane" in found[f"nodes/{name}/kernel/nft-ours.txt"]
        assert "eth0" in found[f"nodes/{name}/kernel/links.txt"]
        assert "net.ipv4.ip_forward = 1" in found[f"nodes/{name}/kernel/sysctls.txt"]
        assert "podlane_agent_ready 1" in found[f"nodes/{name}/agent/metrics.txt"]
        assert "holds what the API says" in found[f"nodes/{name}/logs/agent.log"]
    pods = {pod["metadata"]["name"] for pod in json.loads(found["cluster/objects/pods.json"])}
    assert {"client", "web", "planted"} <= pods
    assert "nobody leads" not in found["cluster/status.txt"]
    assert json.loads(found["nodes/node-1/leases.json"])[0]["pod_name"]


def unpacked(where: Path) -> dict[str, str]:
    """Without the folder that holds it all."""
    with tarfile.open(where) as archive:
        files = [member for member in archive.getmembers() if member.isfile()]
        return {
            member.name.partition("/")[2]: (archive.extractfile(member) or io.BytesIO()).read().decode()
            for member in files
        }


def test_json_of_the_status_stays(lab: Lab) -> None:
    status: dict[str, Any] = json.loads(lab.podlane("status", lab.name, "-o", "json").stdout)
    assert (status["apiVersion"], status["kind"]) == ("podlane.dev/v1alpha1", "LabStatus")


def test_prometheus_scrapes_them_and_evaluates_the_rules_and_the_panels(outside: Outside) -> None:
    until(lambda: outside.get(9090, "/-/ready"))

    def scraped() -> bool:
        targets = outside.ask("targets")["activeTargets"]
        return len(targets) == 3 and all(each["health"] == "up" for each in targets)

    until(scraped)
    up = outside.ask("query", query="sum(podlane_agent_ready)")["result"]
    assert up[0]["value"][1] == "2"
    nodes = outside.ask("query", query="podlane_build_info{component='agent'}")["result"]
    assert {each["metric"]["instance"] for each in nodes} == set(NODES)
    for query in queries():
        if not query.startswith("label_values("):
            outside.ask("query", query=query.replace("$__rate_interval", "5m").replace("$node", ".*"))

    def evaluated() -> list[Any]:
        rules = [rule for group in outside.ask("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] == "ok" for rule in rules) else []

    rules = until(evaluated)
    assert len(rules) == len(list(alerts()))
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []
