"""Defaults as the API server sets them."""

from __future__ import annotations

from typing import Any

import pytest

from podlane.lab.api import defaults
from podlane.lab.api.validation_decode import decode


def filled(api_version: str, kind: str, **fields: Any) -> dict[str, Any]:
    obj, unknown = decode({"apiVersion": api_version, "kind": kind, "metadata": {"name": "web"}, **fields})
    assert unknown == []
    defaults.apply(obj)
    return obj


def pod(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = filled("v1", "Pod", spec={"containers": [{"name": "c", "image": "a:1"}], **spec})
    return found["spec"]


def test_pod() -> None:
    assert pod(containers=[{"name": "c", "image": "tomcat", "ports": [{"containerPort": 80}]}]) == {
        "containers": [
            {
                "name": "c",
                "image": "tomcat",
                "imagePullPolicy": "Always",
                "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }
        ],
        "dnsPolicy": "ClusterFirst",
        "enableServiceLinks": True,
        "restartPolicy": "Always",
        "schedulerName": "default-scheduler",
        "securityContext": {},
        "terminationGracePeriodSeconds": 30,
    }


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("tomcat", "Always"),
        ("tomcat:latest", "Always"),
        ("tomcat:9", "IfNotPresent"),
        ("host:5000/tomcat", "Always"),
        ("host:5000/tomcat:9", "IfNotPresent"),
        ("tomcat@sha256:0123", "IfNotPresent"),
    ],
)
def test_pull_policy_follows_the_tag(image: str, policy: str) -> None:
    assert pod(containers=[{"name": "c", "image": image}])["containers"][0]["imagePullPolicy"] == policy


def test_probe_numbers_and_handler() -> None:
    probe = {"httpGet": {"port": 80}, "timeoutSeconds": 0, "periodSeconds": 5}
    spec = pod(containers=[{"name": "c", "image": "a:1", "readinessProbe": probe}])
    assert spec["containers"][0]["readinessProbe"] == {
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "timeoutSeconds": 1,
        "periodSeconds": 5,
        "successThreshold": 1,
        "failureThreshold": 3,
    }


def test_volumes() -> None:
    spec = pod(
        volumes=[{"name": "a"}, {"name": "b", "configMap": {"name": "x"}}, {"name": "c", "secret": {}}]
    )
    assert spec["volumes"] == [
        {"name": "a", "emptyDir": {}},
        {"name": "b", "configMap": {"name": "x", "defaultMode": 0o644}},
        {"name": "c", "secret": {"defaultMode": 0o644}},
    ]


def test_host_network_takes_host_ports() -> None:
    container = {"name": "c", "image": "a:1", "ports": [{"containerPort": 80}]}
    spec = pod(hostNetwork=True, containers=[container])
    assert spec["containers"][0]["ports"] == [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}]


def test_limits_are_requests() -> None:
    container = {"name": "c", "image": "a:1", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}
    resources = pod(containers=[container])["containers"][0]["resources"]
    assert resources["requests"] == {"cpu": "1", "memory": "1Gi"}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, {"type": "ClusterIP", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None"}),
        (
            {"type": "NodePort"},
            {
                "type": "NodePort",
                "internalTrafficPolicy": "Cluster",
                "externalTrafficPolicy": "Cluster",
                "sessionAffinity": "None",
            },
        ),
        (
            {"type": "LoadBalancer", "sessionAffinity": "ClientIP"},
            {
                "type": "LoadBalancer",
                "internalTrafficPolicy": "Cluster",
                "externalTrafficPolicy": "Cluster",
                "allocateLoadBalancerNodePorts": True,
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
            },
        ),
        (
            {"type": "ExternalName", "externalName": "a.example"},
            {"type": "ExternalName", "externalName": "a.example", "sessionAffinity": "None"},
        ),
    ],
)
def test_service(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    assert filled("v1", "Service", spec=spec)["spec"] == expected


def test_service_ports() -> None:
    ports = [{"port": 80}, {"port": 53, "protocol": "UDP", "targetPort": "dns"}]
    assert filled("v1", "Service", spec={"ports": ports})["spec"]["ports"] == [
        {"port": 80, "protocol": "TCP", "targetPort": 80},
        {"port": 53, "protocol": "UDP", "targetPort": "dns"},
    ]


TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}


@pytest.mark.parametrize(
    ("api_version", "kind", "expected"),
    [
        (
            "apps/v1",
            "Deployment",
            {
                "replicas": 1,
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"},
                },
            },
        ),
        ("apps/v1", "ReplicaSet", {"replicas": 1}),
        (
            "apps/v1",
            "DaemonSet",
            {
                "revisionHistoryLimit": 10,
                "updateStrategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1},
                },
            },
        ),
        (
            "apps/v1",
            "StatefulSet",
            {
                "replicas": 1,
                "revisionHistoryLimit": 10,
                "podManagementPolicy": "OrderedReady",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            },
        ),
        (
            "batch/v1",
            "Job",
            {
                "completions": 1,
                "parallelism": 1,
                "backoffLimit": 6,
                "completionMode": "NonIndexed",
                "suspend": False,
                "manualSelector": False,
                "podReplacementPolicy": "TerminatingOrFailed",
            },
        ),
    ],
)
def test_workloads(api_version: str, kind: str, expected: dict[str, Any]) -> None:
    spec = filled(api_version, kind, spec={"template": TEMPLATE})["spec"]
    assert {k: v for k, v in spec.items() if k != "template"} == expected
    assert spec["template"]["spec"]["restartPolicy"] == "Always"
    assert "enableServiceLinks" not in spec["template"]["spec"]


def test_apps_v1_does_not_make_selectors() -> None:
    assert "selector" not in filled("apps/v1", "Deployment", spec={"template": TEMPLATE})["spec"]
    assert filled("v1", "ReplicationController", spec={"template": TEMPLATE})["spec"]["selector"] == {
        "a": "b"
    }


def test_recreate_has_no_rolling_update() -> None:
    spec = filled("apps/v1", "Deployment", spec={"strategy": {"type": "Recreate"}})["spec"]
    assert spec["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, ["Ingress"]),
        ({"egress": []}, ["Ingress"]),
        ({"egress": [{}]}, ["Ingress", "Egress"]),
        ({"policyTypes": ["Egress"]}, ["Egress"]),
    ],
)
def test_policy_types(spec: dict[str, Any], types: list[str]) -> None:
    found = filled("networking.k8s.io/v1", "NetworkPolicy", spec={"podSelector": None, **spec})["spec"]
    assert found["policyTypes"] == types
    assert found["podSelector"] == {}


def test_explicit_zero_and_false_stay() -> None:
    spec = filled("apps/v1", "Deployment", spec={"replicas": 0, "revisionHistoryLimit": 0})["spec"]
    assert (spec["replicas"], spec["revisionHistoryLimit"]) == (0, 0)
    assert pod(terminationGracePeriodSeconds=0)["terminationGracePeriodSeconds"] == 0
    assert pod(enableServiceLinks=False)["enableServiceLinks"] is False


def test_defaults_are_not_shared_between_objects() -> None:
    first = filled("apps/v1", "Deployment", spec={"template": TEMPLATE})
    first["spec"]["strategy"]["type"] = "Recreate"
    assert filled("apps/v1", "Deployment", spec={})["spec"]["strategy"]["type"] == "RollingUpdate"


def test_applied_twice_is_applied_once() -> None:
    once = filled("apps/v1", "Deployment", spec={"template": TEMPLATE})
    again, _ = decode(once)
    defaults.apply(again)
    assert again == once


def test_secret_texts_become_data() -> None:
    secret = filled("v1", "Secret", stringData={"a": "é"}, data={"b": "eA=="})
    assert secret["data"] == {"a": "w6k=", "b": "eA=="}
    assert secret["type"] == "Opaque"
    assert "stringData" not in secret


def test_namespace_bears_its_name() -> None:
    metadata = filled("v1", "Namespace")["metadata"]
    assert metadata["labels"] == {"kubernetes.io/metadata.name": "web"}


def test_job_selects_its_own_pods() -> None:
    job = filled("batch/v1", "Job", spec={"template": TEMPLATE})
    job["metadata"]["uid"] = "u"
    defaults.own_pods(job)
    assert job["spec"]["selector"] == {"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}
    assert job["spec"]["template"]["metadata"]["labels"] == {
        "a": "b",
        "controller-uid": "u",
        "job-name": "web",
        "batch.kubernetes.io/controller-uid": "u",
        "batch.kubernetes.io/job-name": "web",
    }
