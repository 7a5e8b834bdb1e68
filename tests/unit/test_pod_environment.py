"""A container's environment, names and files, from the pod's words."""

from __future__ import annotations

import base64

import pytest

from podlane.lab.runtime import env, names, quantities
from podlane.model.config import NetworkConfig, with_settings

POD = {
    "metadata": {
        "name": "web-0",
        "namespace": "shop",
        "uid": "u1",
        "labels": {"app": "web", "b": 'x"y'},
        "annotations": {"a/b": "c"},
    },
    "spec": {"nodeName": "node-1"},
    "status": {
        "podIP": "10.244.0.2",
        "podIPs": [{"ip": "10.244.0.2"}, {"ip": "fd00::2"}],
        "hostIP": "172.30.1.11",
    },
}
CONFIG = NetworkConfig()


def service(name: str, ip: str, *ports: dict[str, object], namespace: str = "shop") -> dict[str, object]:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ip, "ports": list(ports)},
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(A)", "x1y1"),
        ("$(NOPE)", "$(NOPE)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A", "$A"),
        ("$(A", "$(A"),
        ("100$", "100$"),
        ("$()", "$()"),
    ],
)
def test_expansion(text, wanted):
    assert env.expand(text, {"A": "1"}) == wanted


def test_variables_know_those_before_them():
    container = {
        "env": [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)$(C)$(API_SERVICE_HOST)"},
            {"name": "C", "value": "3"},
        ]
    }
    found = env.environment(container, POD, {}, [service("api", "10.96.0.5", {"port": 80})], "web-0")
    assert found["B"] == "1$(C)10.96.0.5"
    assert found["HOSTNAME"] == "web-0"


def test_downward_fields():
    paths = {
        "metadata.name": "web-0",
        "metadata.uid": "u1",
        "metadata.labels['app']": "web",
        "metadata.annotations['a/b']": "c",
        "metadata.labels": 'app="web"\nb="x\\"y"',
        "spec.nodeName": "node-1",
        "spec.serviceAccountName": "default",
        "status.podIP": "10.244.0.2",
        "status.podIPs": "10.244.0.2,fd00::2",
        "status.hostIP": "172.30.1.11",
    }
    assert {path: env.field(path, POD) for path in paths} == paths
    with pytest.raises(env.ConfigMissing, match=r"spec\.nope"):
        env.field("spec.nope", POD)


def test_resource_fields_are_rounded_up():
    container = {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}
    assert env.resource_field({"resource": "limits.cpu"}, container, POD) == "2"
    assert env.resource_field({"resource": "limits.cpu", "divisor": "1m"}, container, POD) == "1500"
    assert env.resource_field({"resource": "limits.memory", "divisor": "1Mi"}, container, POD) == "1024"
    assert env.resource_field({"resource": "requests.cpu"}, container, POD) == "0"
    assert env.resource_field({"resource": "limits.cpu"}, {"name": "d"}, POD) == "64"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1.5k", 1500), ("2Ki", 2048), ("1e3", 1000), (".5M", 500000), ("1E", 10**18)],
)
def test_quantities(text, value):
    assert quantities.parse(text) == value


def test_config_of_maps_and_secrets():
    objects = {
        ("configmaps", "cm"): {
            "data": {"a": "1", "bad key": "x"},
            "binaryData": {"raw": base64.b64encode(b"r").decode()},
        },
        ("secrets", "s"): {"data": {"p": base64.b64encode(b"hush").decode()}},
        ("configmaps", "gone"): None,
    }
    container = {
        "envFrom": [
            {"prefix": "X_", "configMapRef": {"name": "cm"}},
            {"configMapRef": {"name": "gone", "optional": True}},
        ],
        "env": [
            {"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
            {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": True}}},
        ],
    }
    found = env.environment(container, POD, objects, [], "h")
    assert (found["X_a"], found["X_raw"], found["P"]) == ("1", "r", "hush")
    assert "O" not in found
    assert "X_bad key" not in found
    pod = {**POD, "spec": {"containers": [container]}}
    assert env.references(pod) == objects.keys()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"envFrom": [{"secretRef": {"name": "no"}}]}, 'secret "no" not found'),
        (
            {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]},
            'configmap "no" not found',
        ),
        (
            {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]},
            "couldn't find key k in ConfigMap shop/cm",
        ),
    ],
)
def test_missing_config_is_named(part, message):
    with pytest.raises(env.ConfigMissing, match=message):
        env.environment(part, POD, {("configmaps", "cm"): {"data": {}}}, [], "h")


def test_service_variables():
    services = [
        service("kubernetes", "10.96.0.1", {"port": 443, "name": "https"}, namespace="default"),
        service("my-db", "fd00:10:96::5", {"port": 5432, "name": "pg", "protocol": "TCP"}),
        service("headless", "None", {"port": 1}),
        service("elsewhere", "10.96.0.9", {"port": 1}, namespace="other"),
    ]
    found = env.service_variables(services, "shop", links=True)
    assert found["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
    assert found["KUBERNETES_SERVICE_PORT_HTTPS"] == "443"
    assert found["MY_DB_SERVICE_PORT"] == "5432"
    assert found["MY_DB_PORT"] == "tcp://[fd00:10:96::5]:5432"
    assert found["MY_DB_PORT_5432_TCP_ADDR"] == "fd00:10:96::5"
    assert not any(name.startswith(("HEADLESS", "ELSEWHERE")) for name in found)
    assert {name.split("_")[0] for name in env.service_variables(services, "shop", links=False)} == {
        "KUBERNETES"
    }


def test_hostname_and_hosts():
    assert names.hostname(POD) == "web-0"
    pod = {**POD, "spec": {"hostname": "h", "subdomain": "sub", "setHostnameAsFQDN": True}}
    assert names.kernel_hostname(pod, "cluster.local") == "h.sub.shop.svc.cluster.local"
    hosts = names.hosts_file(pod, ["10.244.0.2", "fd00::2"], "cluster.local")
    assert "10.244.0.2\th.sub.shop.svc.cluster.local\th\n" in hosts
    assert "fd00::2\th.sub.shop.svc.cluster.local\th\n" in hosts
    long = {"metadata": {"name": "x" * 62 + ".y"}, "spec": {}}
    assert names.hostname(long) == "x" * 62


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (
            {},
            "search shop.svc.cluster.local svc.cluster.local cluster.local\n"
            "nameserver 10.96.0.10\nnameserver fd00:10:96::a\noptions ndots:5\n",
        ),
        ({"dnsPolicy": "Default"}, "search corp\nnameserver 192.0.2.53\n"),
        ({"hostNetwork": True}, "search corp\nnameserver 192.0.2.53\n"),
        (
            {
                "dnsPolicy": "None",
                "dnsConfig": {
                    "nameservers": ["192.0.2.1"],
                    "searches": ["a.b"],
                    "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
                },
            },
            "search a.b\nnameserver 192.0.2.1\noptions ndots:2 edns0\n",
        ),
    ],
)
def test_resolv_conf(spec, wanted):
    node = "# node\nsearch corp\nnameserver 192.0.2.53\n"
    assert names.resolv_conf({**POD, "spec": spec}, CONFIG, node) == wanted


def test_name_server_of_an_ipv6_cluster():
    config = with_settings(CONFIG, ["ipFamilies=IPv6"])
    assert "nameserver fd00:10:96::a\n" in names.resolv_conf(POD, config, "")
