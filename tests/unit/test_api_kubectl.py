"""The machine's kubectl against the API server alone: no kubelets, no controllers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.api_lab import Lab, running

KUBECTL = shutil.which("kubectl")


def _minor() -> int:
    if KUBECTL is None:
        return 0
    text = subprocess.run(
        [KUBECTL, "version", "--client", "-o", "json"], capture_output=True, check=False
    ).stdout
    return int(
        re.sub(r"\D", "", json.loads(text or b'{"clientVersion": {"minor": "0"}}')["clientVersion"]["minor"])
    )


MINOR = _minor()
pytestmark = pytest.mark.skipif(MINOR < 20, reason="no kubectl 1.20 or newer")


def needs(minor: int) -> pytest.MarkDecorator:
    """What older ones do not do themselves, or do in versions of the API long gone."""
    return pytest.mark.skipif(minor > MINOR, reason=f"no kubectl 1.{minor} or newer")


MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: IMAGE
        env: [{name: A, value: "1"}, {name: B, value: "2"}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, name: http}, {port: 443, name: https}]
"""

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, kind: CronTab, shortNames: [ct]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Spec, type: string, jsonPath: .spec.cronSpec}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [cronSpec]
            properties:
              cronSpec: {type: string, description: When to run.}
              image: {type: string, default: busybox}
              replicas: {type: integer, minimum: 1, maximum: 10}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
"""
CRONTAB = """
apiVersion: stable.example.com/v1
kind: CronTab
metadata: {name: my}
spec: {cronSpec: "* * * * *", replicas: REPLICAS}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("api")) as found:
        yield found


class Kubectl:
    def __init__(self, lab: Lab, home: Path, namespace: str) -> None:
        self._command = [str(KUBECTL), "--kubeconfig", str(lab.kubeconfig), "-n", namespace]
        self._environment = {"HOME": str(home), "TMPDIR": str(home), "PATH": "/usr/bin:/bin"}
        self.namespace = namespace

    def run(
        self, *arguments: str, given: str = "", editor: str = "false"
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, *arguments],
            input=given,
            env={**self._environment, "EDITOR": editor},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def __call__(self, *arguments: str, given: str = "") -> str:
        done = self.run(*arguments, given=given)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def refused(self, *arguments: str, given: str = "") -> str:
        done = self.run(*arguments, given=given)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._command, *arguments], env=self._environment, stdout=subprocess.PIPE, text=True
        )


@pytest.fixture
def kubectl(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Kubectl:
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:50].strip("-")
    found = Kubectl(lab, tmp_path, name)
    found("create", "namespace", name)
    return found


def manifest(image: str = "nginx:1", *without: str) -> str:
    text = MANIFEST.replace("IMAGE", image)
    for part in without:
        assert part in text
        text = text.replace(part, "")
    return text


def get(kubectl: Kubectl, *arguments: str) -> Any:
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def test_apply_merges_three_ways(kubectl: Kubectl) -> None:
    assert "deployment.apps/web created" in kubectl("apply", "-f", "-", given=manifest())
    assert "service/web unchanged" in kubectl("apply", "-f", "-", given=manifest())
    kubectl("scale", "deployment", "web", "--replicas=5")
    kubectl("annotate", "service", "web", "kept=yes")
    changed = manifest("nginx:2", '{name: A, value: "1"}, ', "{port: 80, name: http}, ", "  replicas: 2\n")
    assert "service/web configured" in kubectl("apply", "-f", "-", given=changed)
    deployment = get(kubectl, "deployment", "web")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "nginx:2"
    assert container["env"] == [{"name": "B", "value": "2"}]
    service = get(kubectl, "service", "web")
    assert [p["name"] for p in service["spec"]["ports"]] == ["https"]
    assert service["metadata"]["annotations"]["kept"] == "yes"
    kubectl("delete", "-f", "-", given=changed)
    assert get(kubectl, "all")["items"] == []


def test_a_manifest_with_unknown_fields_is_refused_whole(kubectl: Kubectl) -> None:
    wrong = manifest().replace("selector: {app: web}", "selector: {app: web}\n  portz: []")
    by_server, by_itself = 'field "spec.portz"', 'field "portz" in io.k8s.api.core.v1.ServiceSpec'
    message = kubectl.refused("apply", "-f", "-", given=wrong.split("---")[1])
    assert f"unknown {by_server if MINOR >= 25 else by_itself}" in message
    assert get(kubectl, "services")["items"] == []
    wrong = manifest().replace("port: 80,", "port: 70000,")
    message = kubectl.refused("apply", "-f", "-", given=wrong.split("---")[1])
    assert 'The Service "web" is invalid' in message
    assert "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive" in message
    assert "server-side apply is not supported" in kubectl.refused(
        "apply", "--server-side", "-f", "-", given=manifest()
    )


def test_what_people_see(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", given=manifest())
    kubectl("run", "one", "--image=nginx", "--port=80")
    header, row = kubectl("get", "pods", "-o", "wide").splitlines()
    assert header.split("  ")[0] == "NAME"
    assert re.split(r" {2,}", header.strip()) == [
        "NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES",
    ]  # fmt: skip
    assert row.split()[:4] == ["one", "0/1", "Pending", "0"]
    assert re.search(r"web +ClusterIP +10\.96\.\d+\.\d+ +<none> +80/TCP,443/TCP", kubectl("get", "svc"))
    assert re.search(r"web +0/2 +0 +0 +\w+ +web +nginx:1 +app=web", kubectl("get", "deploy", "-o", "wide"))
    assert "kubernetes.io/metadata.name=" in kubectl("get", "ns", kubectl.namespace, "--show-labels")
    assert "No resources found" in kubectl.run("get", "events").stderr
    assert "Image:" in kubectl("describe", "pod", "one")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("configmap c --from-literal=a=b", "configmap"),
        ("secret generic s --from-literal=a=b", "secret"),
        ("deployment d --image=nginx --replicas=3", "deployment"),
        ("service nodeport n --tcp=80:8080", "service"),
        ("job j --image=busybox -- date", "job"),
        pytest.param("cronjob cj --image=busybox --schedule=@daily", "cronjob", marks=needs(21)),
        ("ingress i --rule=a.example/x=web:80", "ingress"),
        ("quota q --hard=pods=2", "resourcequota"),
        pytest.param("poddisruptionbudget p --selector=a=b --min-available=50%", "pdb", marks=needs(21)),
        ("role r --verb=get --resource=pods", "role"),
        ("serviceaccount sa", "serviceaccount"),
    ],
)
def test_create_sends_what_the_server_reads(kubectl: Kubectl, arguments: str, kind: str) -> None:
    """kubectl 1.32 and newer send these as protobuf."""
    kubectl("create", *arguments.split(" "))
    assert len(get(kubectl, kind)["items"]) == 1
    assert "already exists" in kubectl.refused("create", *arguments.split(" "))


IMPERATIVE = [
    # (command, resource whose objects are counted, a JSON path, what is there)
    ("create configmap c --from-literal=a=b", "configmap", ".data.a", "b"),
    ("create secret generic s --from-literal=a=b", "secret", ".data.a", "Yg=="),
    ("create serviceaccount s", "serviceaccount", ".metadata.name", "s"),
    ("create job j --image=i -- echo hi", "job", ".spec.template.spec.containers[0].command[1]", "hi"),
    ("create cronjob c --image=i --schedule=@daily", "cronjob", ".spec.schedule", "@daily"),
    ("create role r --verb=get --resource=pods", "role", ".rules[0].verbs[0]", "get"),
    ("create rolebinding b --role=r --user=jane", "rolebinding", ".subjects[0].name", "jane"),
    ("create quota q --hard=cpu=1500m", "quota", ".spec.hard.cpu", "1500m"),
    ("create ingress i --rule=a.test/x=web:80", "ingress", ".spec.rules[0].host", "a.test"),
    ("create pdb b --selector=a=b --max-unavailable=50%", "pdb", ".spec.maxUnavailable", "50%"),
    ("create pdb b --selector=a=b --min-available=2", "pdb", ".spec.minAvailable", "2"),
    ("create service clusterip s --tcp=80:http", "service", ".spec.ports[0].targetPort", "http"),
    ("create service clusterip s --clusterip=None", "service", ".spec.clusterIP", "None"),
    ("create service externalname s --external-name=a.test", "service", ".spec.externalName", "a.test"),
    ("create deployment d --image=i --replicas=0", "deployment", ".spec.replicas", "0"),
    ("run p --image=i --port=80", "pod", ".spec.containers[0].ports[0].containerPort", "80"),
]


@pytest.mark.parametrize(
    ("command", "resource", "path", "value"),
    IMPERATIVE,
    ids=[f"{number}-{row[0]}" for number, row in enumerate(IMPERATIVE)],
)
def test_imperative_commands(kubectl: Kubectl, command: str, resource: str, path: str, value: str) -> None:
    if MINOR < 21 and resource in ("cronjob", "pdb"):
        pytest.skip("of v1beta1 for this kubectl")
    kubectl(*command.split())
    assert kubectl("get", resource, "-o", f"jsonpath={{range .items[*]}}{{{path}}}{{end}}") == value


def test_a_deployment_grows_and_is_exposed(kubectl: Kubectl) -> None:
    kubectl("create", "deployment", "web", "--image=nginx", "--port=80", "--replicas=2")
    kubectl("expose", "deployment", "web", "--port=80", "--target-port=8080", "--type=NodePort")
    kubectl("autoscale", "deployment", "web", "--min=1", "--max=3", "--cpu-percent=50")
    kubectl("scale", "deployment", "web", "--replicas=5")
    kubectl("scale", "deployment", "web", "--replicas=0", "--current-replicas=5")
    kubectl("set", "env", "deployment/web", "A=B")
    kubectl("set", "resources", "deployment/web", "--limits=cpu=1")
    kubectl("rollout", "pause", "deployment/web")
    spec = get(kubectl, "deployment", "web")["spec"]
    container = spec["template"]["spec"]["containers"][0]
    assert (spec["replicas"], spec["paused"]) == (0, True)
    assert container["env"] == [{"name": "A", "value": "B"}]
    assert container["resources"]["limits"] == {"cpu": "1"}
    assert get(kubectl, "service", "web")["spec"]["ports"][0]["targetPort"] == 8080
    assert get(kubectl, "hpa", "web")["spec"]["maxReplicas"] == 3


def test_nodes_are_tainted_and_cordoned(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", given="apiVersion: v1\nkind: Node\nmetadata: {name: tainted}\n")
    kubectl("taint", "node", "tainted", "a=b:NoSchedule")
    kubectl("cordon", "tainted")
    spec = get(kubectl, "node", "tainted")["spec"]
    assert spec["unschedulable"] is True
    assert {"key": "a", "value": "b", "effect": "NoSchedule"} in spec["taints"]
    kubectl("uncordon", "tainted")
    kubectl("taint", "node", "tainted", "a-")
    assert not {"a"} & {t["key"] for t in get(kubectl, "node", "tainted")["spec"].get("taints", ())}
    kubectl("delete", "node", "tainted")


@needs(24)
def test_service_accounts_get_tokens(lab: Lab, kubectl: Kubectl) -> None:
    kubectl("create", "serviceaccount", "robot")
    token = kubectl("create", "token", "robot", "--duration=1h").strip()
    who = f"system:serviceaccount:{kubectl.namespace}:robot"
    assert who in kubectl.refused("--token", token, "get", "secrets")
    assert kubectl.run("--token", token, "auth", "can-i", "get", "secrets").stdout.strip() == "no"
    message = kubectl.refused("create", "token", "robot", "--duration=1m")
    assert "may not specify a duration less than 10 minutes" in message
    assert 'serviceaccounts "nobody" not found' in kubectl.refused("create", "token", "nobody")
    asked = json.loads(kubectl("create", "token", "robot", "--audience=me", "-o", "json"))
    assert (asked["spec"]["audiences"], asked["spec"]["expirationSeconds"]) == (["me"], 3600)
    message = kubectl.refused("--token", asked["status"]["token"], "get", "secrets")
    assert "Unauthorized" in message or "must be logged in" in message  # it is meant for somebody else


@needs(27)
def test_what_is_not_served_is_refused_in_words(kubectl: Kubectl) -> None:
    kubectl("run", "p", "--image=i")
    message = kubectl.refused("debug", "p", "--image=i", "--target=p", "--profile=general")
    assert "ephemeral containers are disabled for this cluster" in message
    assert "panic" not in message


def test_patches_labels_and_images(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", given=manifest())
    kubectl("set", "image", "deployment/web", "web=nginx:9")
    kubectl(
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        '[{"op":"replace","path":"/spec/replicas","value":7}]',
    )
    kubectl("patch", "deployment", "web", "--type=merge", "-p", '{"metadata":{"labels":{"x":"y"}}}')
    kubectl(
        "patch",
        "deployment",
        "web",
        "-p",
        '{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"s"}]}}}}',
    )
    kubectl("rollout", "restart", "deployment/web")
    found = get(kubectl, "deployment", "web")
    assert found["spec"]["replicas"] == 7
    assert found["metadata"]["labels"] == {"app": "web", "x": "y"}
    assert {c["name"]: c["image"] for c in found["spec"]["template"]["spec"]["containers"]} == {
        "web": "nginx:9",
        "side": "s",
    }
    assert len(get(kubectl, "deployment", "-l", "x in (y)")["items"]) == 1
    assert "error decoding patch" in kubectl.refused(
        "patch", "deployment", "web", "--type=json", "-p", '[{"op":"grow","path":"/"}]'
    )


def test_watch(kubectl: Kubectl) -> None:
    with kubectl.start("get", "configmaps", "-w", "--output-watch-events") as watch:
        assert watch.stdout is not None
        try:
            # The first line shows that the watch stands.
            kubectl("create", "configmap", "first")
            assert watch.stdout.readline().split()[:2] == ["EVENT", "NAME"]
            assert watch.stdout.readline().split()[:3] == ["ADDED", "first", "0"]
            kubectl("patch", "configmap", "first", "-p", '{"data":{"a":"b"}}')
            kubectl("delete", "configmap", "first")
            assert watch.stdout.readline().split()[:3] == ["MODIFIED", "first", "1"]
            assert watch.stdout.readline().split()[:3] == ["DELETED", "first", "1"]
        finally:
            watch.terminate()


def test_wait_and_forced_deletion(lab: Lab, kubectl: Kubectl) -> None:
    kubectl("run", "p", "--image=nginx", "--overrides", '{"spec":{"nodeName":"n1"}}')
    kubectl("delete", "pod", "p", "--wait=false")
    assert re.search(r"^p +0/1 +Terminating", kubectl("get", "pods", "--no-headers"))
    began = time.monotonic()
    kubectl("delete", "pod", "p", "--force")
    assert time.monotonic() - began < 30
    assert get(kubectl, "pods")["items"] == []


def test_explain_and_resources(kubectl: Kubectl) -> None:
    assert "List of ports to expose from the container" in kubectl("explain", "pod.spec.containers.ports")
    assert "clusterIPs" in kubectl("explain", "service.spec", "--recursive")
    listed = kubectl("api-resources", "--no-headers", "-o", "name").split()
    assert {"pods", "deployments.apps", "endpointslices.discovery.k8s.io"} <= set(listed)
    assert kubectl("auth", "can-i", "create", "pods").strip() == "yes"


def test_manifests_are_compared_replaced_and_edited(kubectl: Kubectl) -> None:
    kubectl("create", "-f", "-", given=manifest())
    done = kubectl.run("diff", "-f", "-", given=manifest("nginx:2"))
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"^-\s+image: nginx:1$", done.stdout, re.MULTILINE)
    assert re.search(r"^\+\s+image: nginx:2$", done.stdout, re.MULTILINE)
    assert "deployment.apps/web replaced" in kubectl(
        "replace", "-f", "-", given=manifest("nginx:2").split("---")[0]
    )
    wrong = manifest("nginx:3").split("---")[0].replace("replicas: 2", "replicas: 2\n  foo: 1")
    assert 'unknown field "' in kubectl.refused("replace", "-f", "-", given=wrong)
    assert 'unknown field "' in kubectl.refused(
        "create", "-f", "-", given=wrong.replace("name: web", "name: w")
    )
    assert "no changes made" in kubectl.run("edit", "deployment", "web", editor="true").stderr
    done = kubectl.run("edit", "deployment", "web", editor="sed -i s/nginx:2/nginx:4/")
    assert done.returncode == 0, done.stderr
    spec = get(kubectl, "deployment", "web")["spec"]["template"]["spec"]
    assert [c["image"] for c in spec["containers"]] == ["nginx:4"]
    done = kubectl.run("edit", "deployment", "web", editor="sed -i s/replicas:/replicaz:/")
    assert done.returncode != 0
    assert get(kubectl, "deployment", "web")["spec"]["replicas"] == 2


@needs(24)
def test_custom_resources(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", given=DEFINITION)
    kubectl("wait", "--for=condition=established", "--timeout=20s", "crd/crontabs.stable.example.com")
    kubectl("apply", "-f", "-", given=CRONTAB.replace("REPLICAS", "3"))
    found = get(kubectl, "crontab", "my")
    assert found["spec"] == {"cronSpec": "* * * * *", "image": "busybox", "replicas": 3}
    status = {"replicas": 2, "conditions": [{"type": "Ready", "status": "True"}]}
    patch = json.dumps({"spec": {"replicas": 9}, "status": status})
    kubectl("patch", "ct", "my", "--subresource=status", "--type=merge", "-p", patch)
    found = get(kubectl, "ct", "my")
    assert (found["spec"]["replicas"], found["status"]["replicas"]) == (3, 2)
    header, row = kubectl("get", "ct").splitlines()
    assert header.split() == ["NAME", "SPEC", "READY", "AGE"]
    assert re.match(r"my +\* \* \* \* \* +True +\w+", row)
    kubectl("scale", "ct", "my", "--replicas=4")
    assert get(kubectl, "ct", "my")["spec"]["replicas"] == 4
    message = kubectl.refused("apply", "-f", "-", given=CRONTAB.replace("REPLICAS", "50"))
    assert "spec.replicas in body should be less than or equal to 10" in message
    message = kubectl.refused("apply", "-f", "-", given=CRONTAB.replace("REPLICAS", "x"))
    assert 'must be of type integer: "string"' in message
    message = kubectl.refused("apply", "-f", "-", given=CRONTAB.replace("REPLICAS", "3, unknown: 1"))
    assert 'unknown field "spec.unknown"' in message
    message = kubectl.refused("patch", "ct", "my", "-p", "{}")
    assert "application/merge-patch+json" in message
    assert "When to run." in kubectl("explain", "ct.spec.cronSpec")
    kubectl("delete", "crd", "crontabs.stable.example.com")
    assert "the server" in kubectl.refused("get", "ct")


def test_custom_resources_are_explained_and_tried(kubectl: Kubectl) -> None:
    definition = DEFINITION.replace("crontabs", "timers").replace("CronTab", "Timer").replace("[ct]", "[ti]")
    timer = CRONTAB.replace("CronTab", "Timer").replace("REPLICAS", "3")
    kubectl("apply", "-f", "-", given=definition)
    kubectl("wait", "--for=condition=established", "--timeout=20s", "crd/timers.stable.example.com")
    assert "created (server dry run)" in kubectl("apply", "--dry-run=server", "-f", "-", given=timer)
    kubectl("apply", "-f", "-", given=timer)
    wrong = timer.replace("replicas: 3", "replicas: 3, foo: 1")
    assert re.search(r'unknown field "(spec\.)?foo"', kubectl.refused("apply", "-f", "-", given=wrong))
    assert "When to run." in kubectl("explain", "timers.spec.cronSpec")
    kubectl("delete", "crd", "timers.stable.example.com")
