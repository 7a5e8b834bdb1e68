"""What a Pod asks of its link, as a runtime hands it on."""

from __future__ import annotations

import pytest

from podlane.cni.capabilities import runtime_config
from podlane.errors import ConfigError


def test_host_ports_of_everything_that_runs_on_and_the_bandwidth_of_the_pod() -> None:
    pod = {
        "metadata": {"annotations": {"kubernetes.io/ingress-bandwidth": "10M"}},
        "spec": {
            "initContainers": [
                {"name": "once", "ports": [{"containerPort": 1, "hostPort": 1}]},
                {"name": "beside", "restartPolicy": "Always", "ports": [{"containerPort": 2, "hostPort": 2}]},
            ],
            "containers": [
                {"name": "a", "ports": [{"containerPort": 80}]},
                {"name": "b", "ports": [{"containerPort": 53, "hostPort": 5353, "protocol": "UDP"}]},
                {"name": "c", "ports": [{"containerPort": 9, "hostPort": 9, "hostIP": "172.30.1.11"}]},
                {"name": "d"},
            ],
        },
    }
    assert runtime_config(pod) == {
        "portMappings": [
            {"hostPort": 2, "containerPort": 2, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": ""},
            {"hostPort": 9, "containerPort": 9, "protocol": "tcp", "hostIP": "172.30.1.11"},
        ],
        "bandwidth": {"ingressRate": 10_000_000},
    }


def test_a_pod_that_asks_for_nothing_gets_nothing() -> None:
    assert runtime_config({"metadata": {}, "spec": {"containers": [{"name": "a"}]}}) == {}


def test_a_bandwidth_that_is_none_is_refused_by_name() -> None:
    pod = {"metadata": {"annotations": {"kubernetes.io/egress-bandwidth": "lots"}}}
    with pytest.raises(ConfigError, match="egress-bandwidth: 'lots' is not a quantity"):
        runtime_config(pod)
