# ruff: noqa: E501  (one row a case)
"""Bad objects and the messages they are refused with; good ones pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from podlane.lab.api import allocation_fields, defaults, validation
from podlane.lab.api.validation_decode import BadRequestError, decode, strict_error, unknown_fields
from podlane.lab.api.validation_field import invalid_error

POD_SPEC: dict[str, Any] = {"containers": [{"name": "c", "image": "tomcat"}]}
TEMPLATE: dict[str, Any] = {"metadata": {"labels": {"app": "web"}}, "spec": POD_SPEC}

GOOD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  containers:
  - {name: c, image: tomcat, ports: [{containerPort: 80, name: http}]}
  - {name: d, image: tomcat}
  volumes: [{name: v}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {selector: {app: web}, ports: [{name: a, port: 80}, {name: b, port: 81}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}, matchExpressions: [{key: app, operator: In, values: [web]}]}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: tomcat}]}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: tomcat}]}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web, namespace: default}
spec:
  serviceName: web
  selector: {matchLabels: {app: web}}
  template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: tomcat}]}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: default}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: tomcat}]}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: some, namespace: default}
spec:
  podSelector:
  ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}],
             ports: [{port: 80, endPort: 90}, {port: http}]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default}
addressType: IPv6
endpoints: [{addresses: ["fd00::1"]}]
ports: [{name: "", port: 80}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: default}
spec: {rules: [{host: "*.example.com", http: {paths: [
  {path: /, pathType: Prefix, backend: {service: {name: web, port: {name: http}}}}]}}]}
"""


def filled(obj: dict[str, Any]) -> dict[str, Any]:
    """As the API server has it when it validates."""
    decoded, _ = decode(obj)
    defaults.apply(decoded)
    if decoded["kind"] == "Service":
        allocation_fields.prepare_create(decoded)
    return decoded


def good(kind: str) -> dict[str, Any]:
    return next(d for d in yaml.safe_load_all(GOOD) if d["kind"] == kind)


def changed(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the field at "a.b.0.c" set; None removes it."""
    result = copy.deepcopy(obj)
    *way, last = (int(p) if p.isdigit() else p for p in path.split("."))
    at: Any = result
    for step in way:
        at = at.setdefault(step, {}) if isinstance(step, str) else at[step]
    if value is None:
        del at[last]
    elif isinstance(at, list) and last == len(at):
        at.append(value)
    else:
        at[last] = value
    return result


@pytest.mark.parametrize("obj", list(yaml.safe_load_all(GOOD)), ids=lambda o: str(o["kind"]))
def test_good_object(obj: dict[str, Any]) -> None:
    assert unknown_fields(obj) == []
    assert validation.validate_create(filled(obj)) == []


LABEL = "a lowercase RFC 1123 label must consist of"
REFUSED = [
    # kind, path of the change, value, what the message must be (or begin with)
    ("Service", "metadata.name", "Web", f'metadata.name: Invalid value: "Web": {LABEL}'),
    ("Service", "metadata.labels", {"a b": "x"}, 'metadata.labels: Invalid value: "a b": name part must'),
    ("Service", "metadata.labels", {"a": "x y"}, 'metadata.labels: Invalid value: "x y": a valid label'),
    ("Service", "spec.ports.0.port", 0, "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
    ("Service", "spec.ports.0.port", 70000, "spec.ports[0].port: Invalid value: 70000: must be between 1 and"),
    ("Service", "spec.ports", [], "spec.ports: Required value"),
    ("Service", "spec.ports.1.name", "a", 'spec.ports[1].name: Duplicate value: "a"'),
    ("Service", "spec.ports.1.name", None, "spec.ports[1].name: Required value"),
    ("Service", "spec.ports.1.port", 80, 'spec.ports[1]: Duplicate value: {"protocol":"TCP","port":80}'),
    ("Service", "spec.ports.0.protocol", "tcp", 'spec.ports[0].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"'),
    ("Service", "spec.ports.0.targetPort", "no_name", 'spec.ports[0].targetPort: Invalid value: "no_name": must contain only'),
    ("Service", "spec.ports.0.nodePort", 30000, "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"),
    ("Service", "spec.type", "Internal", 'spec.type: Unsupported value: "Internal": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"'),
    ("Service", "spec.type", "ExternalName", "spec.externalName: Required value"),
    ("Service", "spec.clusterIP", "10.96.0.300", 'spec.clusterIPs[0]: Invalid value: "10.96.0.300": must be a valid IP address'),
    ("Service", "spec.sessionAffinity", "Cookie", 'spec.sessionAffinity: Unsupported value: "Cookie"'),
    ("Service", "spec.externalTrafficPolicy", "Local", 'spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible'),
    ("Service", "spec.ipFamilies", ["IPv5"], 'spec.ipFamilies[0]: Unsupported value: "IPv5": supported values: "IPv4", "IPv6"'),
    ("Service", "spec.ipFamilies", ["IPv4", "IPv6"], "spec.ipFamilyPolicy: Invalid value: \"null\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"),
    ("Service", "spec.clusterIPs", ["10.96.0.9"], 'spec.clusterIPs: Invalid value: ["10.96.0.9"]: must be empty when `clusterIP` is not specified'),
    ("Service", "spec.loadBalancerSourceRanges", ["10.0.0.0/8"], "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"),
    ("Service", "spec.externalIPs", ["127.0.0.1"], 'spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range'),
    ("Pod", "spec.containers", [], "spec.containers: Required value"),
    ("Pod", "spec.containers.1.name", "c", 'spec.containers[1].name: Duplicate value: "c"'),
    ("Pod", "spec.containers.0.name", "C", f'spec.containers[0].name: Invalid value: "C": {LABEL}'),
    ("Pod", "spec.containers.0.image", "", "spec.containers[0].image: Required value"),
    ("Pod", "spec.containers.0.ports.0.containerPort", 65536, "spec.containers[0].ports[0].containerPort: Invalid value: 65536: must be between"),
    ("Pod", "spec.containers.0.ports.1", {"containerPort": 81, "name": "http"}, 'spec.containers[0].ports[1].name: Duplicate value: "http"'),
    ("Pod", "spec.containers.0.volumeMounts", [{"name": "w", "mountPath": "/w"}], 'spec.containers[0].volumeMounts[0].name: Not found: "w"'),
    ("Pod", "spec.containers.0.livenessProbe", {"periodSeconds": 5}, "spec.containers[0].livenessProbe: Required value: must specify a handler type"),
    ("Pod", "spec.containers.0.livenessProbe", {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}, "spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"),
    ("Pod", "spec.containers.0.livenessProbe", {"successThreshold": 2, "tcpSocket": {"port": 1}}, "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"),
    ("Pod", "spec.containers.0.env", [{"name": "a=b"}], 'spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment'),
    ("Pod", "spec.containers.0.env", [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}], 'spec.containers[0].env[0].valueFrom: Invalid value: "": may not be specified when `value` is not empty'),
    ("Pod", "spec.containers.0.env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}], 'spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: "spec.x": error converting fieldPath'),
    ("Pod", "spec.containers.0.resources", {"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}}, 'spec.containers[0].resources.requests: Invalid value: "1500m": must be less than or equal to cpu limit of 1'),
    ("Pod", "spec.restartPolicy", "Sometimes", 'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"'),
    ("Pod", "spec.dnsPolicy", "None", "spec.dnsConfig.nameservers: Required value"),
    ("Pod", "spec.volumes", [{"name": "v"}, {"name": "v"}], 'spec.volumes[1].name: Duplicate value: "v"'),
    ("Pod", "spec.volumes", [{"name": "v", "emptyDir": {}, "configMap": {"name": "x"}}], "spec.volumes[0].emptyDir: Forbidden: may not specify more than 1 volume type"),
    ("Pod", "spec.tolerations", [{"operator": "Equal"}], 'spec.tolerations[0].operator: Invalid value: "Equal": operator must be Exists'),
    ("Deployment", "spec.selector", None, "spec.selector: Required value"),
    ("Deployment", "spec.selector.matchLabels.app", "other", 'spec.template.metadata.labels: Invalid value: {"app":"web"}: `selector` does not match template `labels`'),
    ("Deployment", "spec.selector.matchExpressions.0.operator", "Is", 'spec.selector.matchExpressions[0].operator: Invalid value: "Is": not a valid selector operator'),
    ("Deployment", "spec.selector.matchExpressions.0.values", [], "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"),
    ("Deployment", "spec.selector.matchExpressions.0.operator", "Exists", "spec.selector.matchExpressions[0].values: Forbidden: may not be specified when"),
    ("Deployment", "spec.template.spec.restartPolicy", "Never", 'spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"'),
    ("Deployment", "spec.replicas", -1, "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
    ("Deployment", "spec.strategy", {"type": "Recreate", "rollingUpdate": {}}, "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"),
    ("Deployment", "spec.strategy", {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}, "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"),
    ("DaemonSet", "spec.updateStrategy", {"type": "Now"}, 'spec.updateStrategy.type: Unsupported value: "Now"'),
    ("StatefulSet", "spec.podManagementPolicy", "Any", 'spec.podManagementPolicy: Unsupported value: "Any": supported values: "OrderedReady", "Parallel"'),
    ("Job", "spec.template.spec.restartPolicy", "Always", 'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"'),
    ("NetworkPolicy", "spec.ingress.0.from.0", {}, "spec.ingress[0].from[0]: Required value: must specify a peer"),
    ("NetworkPolicy", "spec.ingress.0.from.1.podSelector", {}, "spec.ingress[0].from[1]: Forbidden: may not specify both ipBlock and another peer"),
    ("NetworkPolicy", "spec.ingress.0.from.1.ipBlock.except.0", "10.0.0.0/8", 'spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: "10.0.0.0/8": must be a strict subset of `cidr`: 10.0.0.0/8'),
    ("NetworkPolicy", "spec.ingress.0.from.1.ipBlock.cidr", "10.0.0.1/8", 'spec.ingress[0].from[1].ipBlock.cidr: Invalid value: "10.0.0.1/8": must not have bits set beyond the prefix length'),
    ("NetworkPolicy", "spec.ingress.0.ports.0.endPort", 79, "spec.ingress[0].ports[0].endPort: Invalid value: 79: must be greater than or equal to `port`"),
    ("NetworkPolicy", "spec.ingress.0.ports.1.endPort", 79, "spec.ingress[0].ports[1].endPort: Invalid value: 79: may not be specified when `port` is non-numeric"),
    ("NetworkPolicy", "spec.policyTypes", ["Both"], 'spec.policyTypes[0]: Unsupported value: "Both": supported values: "Egress", "Ingress"'),
    ("NetworkPolicy", "spec.podSelector", {"matchExpressions": [{"key": "a", "operator": "In"}]}, "spec.podSelector.matchExpressions[0].values: Required value"),
    ("EndpointSlice", "addressType", "IPv5", 'addressType: Unsupported value: "IPv5": supported values: "FQDN", "IPv4", "IPv6"'),
    ("EndpointSlice", "endpoints.0.addresses", ["10.0.0.1"], 'endpoints[0].addresses[0]: Invalid value: "10.0.0.1": must be an IPv6 address'),
    ("EndpointSlice", "endpoints.0.addresses", [], "endpoints[0].addresses: Required value: must contain at least 1 address"),
    ("EndpointSlice", "ports.1", {"port": 81}, 'ports[1].name: Duplicate value: ""'),
    ("Ingress", "spec.rules.0.http.paths.0.pathType", None, "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"),
    ("Ingress", "spec.rules.0.http.paths.0.path", "x", 'spec.rules[0].http.paths[0].path: Invalid value: "x": must be an absolute path'),
    ("Ingress", "spec.rules.0.http.paths.0.backend.service.port", {}, "spec.rules[0].http.paths[0].backend.service: Required value: port name or number is required"),
    ("Ingress", "spec.rules.0.host", "10.0.0.1", 'spec.rules[0].host: Invalid value: "10.0.0.1": must be a DNS name, not an IP address'),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "value", "message"), REFUSED)
def test_refused(kind: str, path: str, value: Any, message: str) -> None:
    errors = [str(e) for e in validation.validate_create(filled(changed(good(kind), path, value)))]
    assert any(e.startswith(message) for e in errors), errors


def test_message_of_one_and_of_several_errors() -> None:
    service = filled(changed(good("Service"), "spec.ports.0.port", 70000))
    service["spec"]["ports"][0]["targetPort"] = 80
    one = invalid_error("v1", "Service", "web", validation.validate_create(service))
    assert str(one) == (
        'Service "web" is invalid: spec.ports[0].port: Invalid value: 70000: '
        "must be between 1 and 65535, inclusive"
    )
    assert one.code == 422
    several = invalid_error(
        "apps/v1", "Deployment", "web", validation.validate_create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}})
    )  # fmt: skip
    assert str(several) == (
        'Deployment.apps "web" is invalid: [spec.template: Required value, spec.selector: Required value]'
    )
    assert several.details["group"] == "apps"


UPDATES = [
    ("Deployment", "spec.selector.matchLabels.x", "y", "spec.selector: Invalid value: "),
    ("Job", "spec.template.spec.containers.0.image", "other", "spec.template: Invalid value: "),
    ("StatefulSet", "spec.serviceName", "other", "spec: Forbidden: updates to statefulset spec for fields other than 'replicas'"),
    ("EndpointSlice", "addressType", "FQDN", 'addressType: Invalid value: "FQDN": field is immutable'),
    ("Pod", "spec.hostNetwork", True, "spec: Forbidden: pod updates may not change fields other than"),
    ("Pod", "spec.containers.2", {"name": "e", "image": "x"}, "spec.containers: Forbidden: pod updates may not add or remove containers"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "value", "message"), UPDATES)
def test_refused_update(kind: str, path: str, value: Any, message: str) -> None:
    old = good(kind)
    new = changed(old, path, value)
    if kind == "Deployment":
        new["spec"]["template"]["metadata"]["labels"]["x"] = "y"
    errors = [str(e) for e in validation.validate_update(filled(new), filled(old))]
    assert any(e.startswith(message) for e in errors), errors


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Pod", "spec.containers.0.image", "other"),
        ("Pod", "spec.tolerations", [{"operator": "Exists"}]),
        ("Deployment", "spec.replicas", 5),
        ("StatefulSet", "spec.replicas", 5),
        ("Service", "spec.ports.0.port", 8080),
    ],
)
def test_allowed_update(kind: str, path: str, value: Any) -> None:
    old = good(kind)
    assert validation.validate_update(filled(changed(old, path, value)), filled(old)) == []


def test_cluster_ip_may_not_change() -> None:
    spec = {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}
    old = filled(good("Service"))
    old["spec"] |= spec
    new = copy.deepcopy(old)
    new["spec"] |= {"clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"]}
    assert [str(e) for e in validation.validate_update(new, old)] == [
        'spec.clusterIPs[0]: Invalid value: ["10.96.0.10"]: may not change once set'
    ]


def test_an_old_fault_does_not_bar_other_changes() -> None:
    old = filled(changed(good("Service"), "spec.ports.0.port", 70000))
    new = copy.deepcopy(old)
    new["metadata"]["labels"] = {"a": "b"}
    assert validation.validate_update(new, old) == []


# --- decoding -------------------------------------------------------------------------------------

MISMATCHES = [
    ("Service", "spec.ports.0.port", "80", "json: cannot unmarshal string into Go struct field ServicePort.spec.ports.port of type int32"),
    ("Service", "spec.ports.0.port", 1.5, "json: cannot unmarshal number 1.5 into Go struct field ServicePort.spec.ports.port of type int32"),
    ("Service", "spec.ports", {}, "json: cannot unmarshal object into Go struct field ServiceSpec.spec.ports of type []v1.ServicePort"),
    ("Service", "spec.selector", {"a": True}, "json: cannot unmarshal bool into Go struct field ServiceSpec.spec.selector of type string"),
    ("Service", "spec.publishNotReadyAddresses", "yes", "json: cannot unmarshal string into Go struct field ServiceSpec.spec.publishNotReadyAddresses of type bool"),
    ("Service", "metadata.labels", ["a"], "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string"),
    ("Service", "spec", "x", "json: cannot unmarshal string into Go struct field Service.spec of type v1.ServiceSpec"),
    ("Deployment", "spec.replicas", 1 << 40, "json: cannot unmarshal number 1099511627776 into Go struct field DeploymentSpec.spec.replicas of type int32"),
    ("Pod", "spec.containers.0.resources", {"limits": {"cpu": "much"}}, "quantities must match the regular expression"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "path", "value", "message"), MISMATCHES)
def test_wrong_type(kind: str, path: str, value: Any, message: str) -> None:
    obj = changed(good(kind), path, value)
    with pytest.raises(BadRequestError) as caught:
        decode(obj)
    assert caught.value.code == 400
    version = obj["apiVersion"].rpartition("/")[2]
    assert str(caught.value).startswith(
        f'{kind} in version "{version}" cannot be handled as a {kind}: {message}'
    )


def test_unknown_fields_are_named_and_left_out() -> None:
    obj = changed(changed(good("Service"), "spec.foo", 1), "spec.ports.1.prot", "TCP")
    decoded, unknown = decode(obj)
    assert unknown == ["spec.ports[1].prot", "spec.foo"]
    assert "foo" not in decoded["spec"]
    assert str(strict_error(obj, unknown)) == (
        'Service in version "v1" cannot be handled as a Service: strict decoding error: '
        'unknown field "spec.ports[1].prot", unknown field "spec.foo"'
    )


def test_nulls_and_empty_collections_are_absent() -> None:
    obj = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a", "creationTimestamp": None, "labels": {}},
        "spec": {"ports": None, "selector": {"a": None}},
    }
    decoded, _ = decode(obj)
    assert decoded == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "a"},
        "spec": {"selector": {"a": ""}},
    }
