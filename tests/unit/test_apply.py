"""apply and delete against a real API server on 127.0.0.1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from podlane.cli.apply import command as apply_command
from podlane.cli.convert import command as convert_command
from podlane.cli.delete import command as delete_command
from podlane.cli.manifests import require_some
from podlane.errors import ApiError, ConfigError, ConflictError, LabError, NotFoundError, UsageError
from podlane.lab import manifests
from podlane.lab.apply import Applied, annotated, apply_objects, delete_objects
from podlane.lab.rest import MERGE_PATCH, Client
from podlane.lab.three_way import LAST_APPLIED
from tests.unit import api_lab

WEB = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: tomcat}]}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
"""

THING = """
apiVersion: example.com/v1
kind: Thing
metadata: {name: one}
spec: {size: 1}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, kind: Thing}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[api_lab.Lab]:
    with api_lab.running(tmp_path_factory.mktemp("api")) as found:
        yield found


@pytest.fixture
def client(lab: api_lab.Lab) -> Iterator[Client]:
    with Client.from_kubeconfig(lab.kubeconfig) as found:
        yield found
        for what in ("services", "deployments.apps", "configmaps"):
            for obj in found.list(what):
                meta = obj["metadata"]
                if meta["name"] not in ("kubernetes", "kube-root-ca.crt"):
                    found.delete(what, meta["name"], meta["namespace"], grace_period_s=0)


def written(tmp_path: Path, text: str) -> list[manifests.Manifest]:
    path = tmp_path / "web.yaml"
    path.write_text(text)
    return manifests.load([str(path)], validate=False)


def actions(results: list[Applied]) -> dict[str, str]:
    return {manifests.describe(r.manifest.object): r.action for r in results}


def test_apply_creates_changes_and_leaves_alone(client: Client, tmp_path: Path) -> None:
    results = apply_objects(client, written(tmp_path, WEB))
    assert actions(results) == {
        "Namespace shop": "created",
        "Service shop/web": "created",
        "Deployment web": "created",
    }
    assert results[0].manifest.object["kind"] == "Namespace"
    again = apply_objects(client, written(tmp_path, WEB))
    assert set(actions(again).values()) == {"unchanged"}
    changed = apply_objects(client, written(tmp_path, WEB.replace("port: 80", "port: 81, name: http")))
    assert actions(changed)["Service shop/web"] == "configured"
    service = client.get("services", "web", "shop")
    assert [p["port"] for p in service["spec"]["ports"]] == [81]
    assert service["spec"]["clusterIP"] == results[1].object["spec"]["clusterIP"]  # type: ignore[index]


def test_apply_keeps_what_others_wrote(client: Client, tmp_path: Path) -> None:
    apply_objects(client, written(tmp_path, WEB))
    client.patch("deployments.apps", "web", "default", {"metadata": {"labels": {"by": "hand"}}})
    client.patch("deployments.apps", "web", "default", {"spec": {"replicas": 5}})
    text = WEB.replace("image: tomcat", "image: other")
    apply_objects(client, written(tmp_path, text))
    deployment = client.get("deployments.apps", "web")
    assert deployment["spec"]["replicas"] == 5
    assert deployment["metadata"]["labels"] == {"by": "hand"}
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "other"
    last = json.loads(deployment["metadata"]["annotations"][LAST_APPLIED])
    assert last["metadata"] == {"name": "web", "namespace": "default", "annotations": {}}
    assert last["spec"]["template"]["spec"]["containers"] == [{"name": "c", "image": "other"}]


BAD = """
apiVersion: v1
kind: Service
metadata: {name: typo}
spec: {prots: [{port: 80}], ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: range}
spec: {ports: [{port: 70000, targetPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: words}
spec: {ports: [{port: eighty}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: operator}
spec:
  selector: {matchExpressions: [{key: app, operator: Is, values: [web]}]}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: tomcat}]}}
---
apiVersion: v1
kind: Gadget
metadata: {name: unheard}
---
apiVersion: apps/v2
kind: Deployment
metadata: {name: tomorrow}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: nowhere, namespace: missing}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: good}
"""


def test_what_is_refused_is_named_and_the_rest_is_applied(client: Client, tmp_path: Path) -> None:
    results = apply_objects(client, written(tmp_path, BAD))
    assert [r.action for r in results] == ["failed"] * 7 + ["created"]
    messages = [str(r.error).replace(f"{tmp_path}/", "") for r in results[:-1]]
    assert messages == [
        'web.yaml: document 1: Service typo: Service in version "v1" cannot be handled as a Service: '
        'strict decoding error: unknown field "spec.prots"',
        'web.yaml: document 2: Service "range" is invalid: spec.ports[0].port: Invalid value: 70000: '
        "must be between 1 and 65535, inclusive",
        'web.yaml: document 3: Service words: Service in version "v1" cannot be handled as a Service: json: '
        "cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32",
        'web.yaml: document 4: Deployment.apps "operator" is invalid: '
        'spec.selector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator',
        'web.yaml: document 5: Gadget unheard: no matches for kind "Gadget" in version "v1"',
        'web.yaml: document 6: Deployment tomorrow: no matches for kind "Deployment" in version "apps/v2"; '
        "Deployment is served as apps/v1",
        'web.yaml: document 7: ConfigMap missing/nowhere: namespaces "missing" not found',
    ]
    assert all(r.error is not None and r.error.exit_status == 2 for r in results[:-1])
    assert [s["metadata"]["name"] for s in client.list("services", "default")] == ["kubernetes"]


def test_load_says_beforehand_what_the_api_would(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(BAD)
    with pytest.raises(ConfigError) as caught:
        manifests.load([str(tmp_path / "web.yaml")])
    lines = str(caught.value).splitlines()
    assert [line.partition(": document ")[2][0] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    assert 'Service "range" is invalid: spec.ports[0].port: Invalid value: 70000' in lines[1]
    (tmp_path / "web.yaml").write_text(THING + "---" + WEB)
    assert len(manifests.load([str(tmp_path / "web.yaml")])) == 5


def test_definitions_come_before_their_objects(client: Client, tmp_path: Path) -> None:
    results = apply_objects(client, written(tmp_path, THING))
    assert actions(results) == {
        "CustomResourceDefinition things.example.com": "created",
        "Thing one": "created",
    }
    assert apply_objects(client, written(tmp_path, THING))[1].action == "unchanged"
    gone = delete_objects(client, written(tmp_path, THING))
    assert [r.action for r in gone] == ["deleted", "deleted"]
    assert [r.action for r in delete_objects(client, written(tmp_path, THING))] == ["absent", "absent"]


def test_delete(client: Client, tmp_path: Path) -> None:
    text = WEB.rpartition("---")[0].replace(", namespace: shop", "")
    apply_objects(client, written(tmp_path, text))
    results = delete_objects(client, written(tmp_path, text))
    assert actions(results) == {"Service web": "deleted", "Deployment web": "deleted"}
    with pytest.raises(NotFoundError):
        client.get("services", "web")
    assert set(actions(delete_objects(client, written(tmp_path, text))).values()) == {"absent"}


def test_delete_tells_what_does_not_go(client: Client, tmp_path: Path) -> None:
    text = "{apiVersion: v1, kind: ConfigMap, metadata: {name: held, finalizers: [example.com/hold]}}"
    apply_objects(client, written(tmp_path, text))
    told: list[Applied] = []
    (result,) = delete_objects(client, written(tmp_path, text), timeout_s=0.1, report=told.append)
    assert [r.action for r in told] == ["deleted", "failed"]
    assert result == told[-1]
    assert result.error is not None
    assert "still there after 0.1 s" in str(result.error)
    assert result.error.exit_status == 1
    client.patch("configmaps", "held", "default", {"metadata": {"finalizers": None}})


def test_client(client: Client, lab: api_lab.Lab) -> None:
    made = client.create("configmaps", {"metadata": {"generateName": "a-", "labels": {"x": "y"}}}, "default")
    assert made["metadata"]["name"].startswith("a-")
    assert [o["metadata"]["uid"] for o in client.list("configmaps", label_selector="x=y")] == [
        made["metadata"]["uid"]
    ]
    stale = {**made, "data": {"a": "b"}}
    client.replace("configmaps", stale)
    with pytest.raises(ConflictError):
        client.replace("configmaps", stale)
    with pytest.raises(ApiError, match="unknown field"):
        client.patch(
            "configmaps", made["metadata"]["name"], "default", {"date": {}}, content_type=MERGE_PATCH
        )
    assert client.namespace == "default"


def test_a_connection_the_server_closed_is_made_again(client: Client) -> None:
    client.list("nodes")
    assert client._connection is not None
    assert client._connection.sock is not None
    client._connection.sock.shutdown(2)
    assert client.list("nodes") == []


def test_who_does_not_answer_is_named(lab: api_lab.Lab, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    text = lab.kubeconfig.read_text()
    path.write_text(text.replace(lab.url, "https://127.0.0.1:1"))
    with (
        Client.from_kubeconfig(path) as client,
        pytest.raises(LabError, match=r"127\.0\.0\.1:1 cannot be reached"),
    ):
        client.list("pods")
    path.write_text(text.replace(lab.pki.token, "wrong"))
    with Client.from_kubeconfig(path) as client, pytest.raises(ApiError) as caught:
        client.list("pods")
    assert caught.value.code == 401
    path.write_text(text.replace("certificate-authority-data:", "other:"))
    with Client.from_kubeconfig(path) as client, pytest.raises(LabError, match="CERTIFICATE_VERIFY_FAILED"):
        client.list("pods")
    with pytest.raises(ConfigError, match="kubeconfig"):
        Client.from_kubeconfig(tmp_path / "missing")


# --- commands -------------------------------------------------------------------------------------


def invoke(lab: api_lab.Lab, command: Any, *arguments: str) -> Any:
    return CliRunner().invoke(command, [*arguments, "--kubeconfig", str(lab.kubeconfig)])


def test_commands(lab: api_lab.Lab, client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}")
    (tmp_path / "b.yaml").write_text("a: [")
    good = invoke(lab, apply_command, "-f", str(tmp_path / "a.yaml"))
    assert (good.exit_code, good.stdout) == (0, "ConfigMap default/a created\n")
    both = invoke(lab, apply_command, "-f", str(tmp_path), "-o", "json")
    assert both.exit_code == 2
    document = json.loads(both.stdout)
    assert document["kind"] == "ApplyResult"
    assert [o["action"] for o in document["objects"]] == ["unchanged"]
    assert "not YAML" in document["errors"][0]
    assert "not YAML" in both.stderr
    deleted = invoke(lab, delete_command, "-f", str(tmp_path / "a.yaml"))
    assert (deleted.exit_code, deleted.stdout) == (0, "ConfigMap default/a deleted\n")


def test_convert_command(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "apiVersion: networking.k8s.io/v1beta1\nkind: Ingress\nmetadata: {name: 'y'}\n"
        "spec: {backend: {serviceName: web, servicePort: 80}}\n"
    )
    result = CliRunner().invoke(convert_command, ["-f", str(path)])
    assert result.exit_code == 0
    assert "apiVersion networking.k8s.io/v1beta1 is now networking.k8s.io/v1" in result.stderr
    (tmp_path / "new.yaml").write_text(result.stdout)
    (new,) = manifests.load([str(tmp_path / "new.yaml")])
    assert new.object["metadata"]["name"] == "y"
    assert new.object["spec"]["defaultBackend"]["service"] == {"name": "web", "port": {"number": 80}}


def test_the_last_applied_configuration_is_kubectls_to_the_byte() -> None:
    obj = {"kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1 < 2 && 3 > 2 \u00e9\u2028"}}
    text = annotated(obj)["metadata"]["annotations"][LAST_APPLIED]
    escaped = "1 \\u003c 2 \\u0026\\u0026 3 \\u003e 2 \u00e9\\u2028"
    assert text == (
        f'{{"data":{{"a":"{escaped}"}},"kind":"ConfigMap","metadata":{{"annotations":{{}},"name":"c"}}}}\n'
    )


def test_files_without_an_object_are_told() -> None:
    with pytest.raises(UsageError, match=r"empty\.yaml: no object here"):
        require_some([], [], ["empty.yaml"])
