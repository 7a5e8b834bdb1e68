# ruff: noqa: E501  (one row a case)
"""Old API versions become current ones that the API takes, with a note of each change."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from podlane.errors import ConfigError
from podlane.lab import legacy
from podlane.lab.api import defaults, validation
from podlane.lab.api.validation_decode import decode

OLD = """
apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: web}
spec:
  backend: {serviceName: all, servicePort: 80}
  rules: [{host: a.example, http: {paths: [{path: /x, backend: {serviceName: web, servicePort: http}}]}}]
---
apiVersion: networking.k8s.io/v1beta1
kind: Ingress
metadata: {name: web}
spec: {rules: [{http: {paths: [{path: /, pathType: Prefix, backend: {serviceName: web, servicePort: 80}}]}}]}
---
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: web}
spec:
  rollbackTo: {revision: 1}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: a}]}}
---
apiVersion: apps/v1beta1
kind: StatefulSet
metadata: {name: web}
spec: {serviceName: web, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: a}]}}}
---
apiVersion: extensions/v1beta1
kind: DaemonSet
metadata: {name: web}
spec: {templateGeneration: 2, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: a}]}}}
---
apiVersion: extensions/v1beta1
kind: NetworkPolicy
metadata: {name: web}
spec: {podSelector: {}}
---
apiVersion: batch/v1beta1
kind: CronJob
metadata: {name: web}
spec:
  schedule: "*/5 * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: a}]}}}}
---
apiVersion: policy/v1beta1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 1, selector: {}}
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
metadata: {name: web}
addressType: IPv4
endpoints: [{addresses: [10.0.0.1], topology: {kubernetes.io/hostname: node-1, topology.kubernetes.io/zone: z, x: y}}]
---
apiVersion: apiextensions.k8s.io/v1beta1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  version: v1
  names: {plural: things, kind: Thing}
  validation: {openAPIV3Schema: {type: object, properties: {spec: {type: object}}}}
  additionalPrinterColumns: [{name: A, type: string, JSONPath: .spec.a}]
"""


def old(index: int) -> dict[str, Any]:
    found: dict[str, Any] = list(yaml.safe_load_all(OLD))[index]
    return found


@pytest.mark.parametrize("obj", list(yaml.safe_load_all(OLD)), ids=lambda o: f"{o['apiVersion']} {o['kind']}")
def test_what_comes_out_is_valid_and_current(obj: dict[str, Any]) -> None:
    new, notes = legacy.convert(obj)
    assert notes[0] == f"apiVersion {obj['apiVersion']} is now {new['apiVersion']}"
    decoded, unknown = decode(new)
    assert unknown == []
    defaults.apply(decoded)
    assert validation.validate_create(decoded) == []
    assert legacy.convert(new).notes == []


def test_ingress() -> None:
    spec = legacy.convert(old(0)).object["spec"]
    assert spec == {
        "defaultBackend": {"service": {"name": "all", "port": {"number": 80}}},
        "rules": [
            {
                "host": "a.example",
                "http": {
                    "paths": [
                        {
                            "path": "/x",
                            "pathType": "ImplementationSpecific",
                            "backend": {"service": {"name": "web", "port": {"name": "http"}}},
                        }
                    ]
                },
            }
        ],
    }


def test_old_backends_in_a_new_ingress() -> None:
    obj = {**old(1), "apiVersion": "networking.k8s.io/v1"}
    new, notes = legacy.convert(obj)
    backend = new["spec"]["rules"][0]["http"]["paths"][0]["backend"]
    assert backend == {"service": {"name": "web", "port": {"number": 80}}}
    assert len(notes) == 1


def test_deployment_keeps_its_old_behaviour() -> None:
    new, notes = legacy.convert(old(2))
    assert new["spec"]["selector"] == {"matchLabels": {"app": "web"}}
    assert new["spec"]["strategy"] == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}
    assert "rollbackTo" not in new["spec"]
    assert len(notes) == 4


@pytest.mark.parametrize("index", [3, 4])
def test_update_strategy_stays_on_delete(index: int) -> None:
    assert legacy.convert(old(index)).object["spec"]["updateStrategy"] == {"type": "OnDelete"}


def test_topology_of_endpoints() -> None:
    (endpoint,) = legacy.convert(old(8)).object["endpoints"]
    assert endpoint == {
        "addresses": ["10.0.0.1"],
        "nodeName": "node-1",
        "zone": "z",
        "deprecatedTopology": {"x": "y"},
    }


def test_definition_says_everything_per_version() -> None:
    (version,) = legacy.convert(old(9)).object["spec"]["versions"]
    assert version["additionalPrinterColumns"] == [{"name": "A", "type": "string", "jsonPath": ".spec.a"}]
    assert version["schema"]["openAPIV3Schema"]["properties"] == {"spec": {"type": "object"}}


def test_nothing_given_is_changed() -> None:
    given = old(0)
    legacy.convert(given)
    assert given == old(0)


def test_malformed_and_removed_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be converted"):
        legacy.convert({**old(0), "spec": {"rules": [["x"]]}} | {"spec": {"rules": "x"}})
    with pytest.raises(ConfigError, match="was removed from Kubernetes"):
        legacy.convert({"apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicy", "metadata": {}})
