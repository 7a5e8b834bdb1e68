from __future__ import annotations

import time
from typing import Any

import pytest

from podlane.lab.api.cells import human
from podlane.lab.api.resources import Catalog
from podlane.lab.api.table import Tables

Obj = dict[str, Any]
NOW_S = 1_700_000_000.0


def stamp(ago_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW_S - ago_s))


def row(resource: str, obj: Obj) -> Obj:
    tables, kind = Tables(now_s=lambda: NOW_S), Catalog().named(resource)
    obj = {"metadata": {"name": "x", "creationTimestamp": stamp(90), **obj.pop("metadata", {})}, **obj}
    names = [c.definition["name"] for c in tables.columns(kind)]
    return dict(zip(names, tables.cells(kind, obj), strict=True))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [  # k8s.io/apimachinery pkg/util/duration
        (-5, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (125, "2m5s"), (599, "9m59s"),
        (600, "10m"), (10799, "179m"), (10800, "3h"), (10860, "3h1m"), (28799, "7h59m"), (28800, "8h"),
        (172799, "47h"), (172800, "2d"), (180000, "2d2h"), (691200, "8d"), (63071999, "729d"),
        (63072000, "2y"), (63158400, "2y1d"), (252288000, "8y"),
    ],
)  # fmt: skip
def test_ages(seconds: int, text: str) -> None:
    assert human(seconds) == text


def pod(status: Obj, **more: Any) -> Obj:
    spec = {"containers": [{"name": "a"}, {"name": "b"}], **more.pop("spec", {})}
    return {"spec": spec, "status": {"phase": "Running", **status}, **more}


READY = {"conditions": [{"type": "Ready", "status": "True"}]}


@pytest.mark.parametrize(
    ("obj", "ready", "status", "restarts"),
    [
        (pod({"phase": "Pending"}), "0/2", "Pending", "0"),
        (
            pod({"containerStatuses": [{"name": "a", "ready": True, "restartCount": 1}, {"name": "b"}]}),
            "1/2",
            "Running",
            "1",
        ),
        (
            pod({"containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
            "0/2",
            "CrashLoopBackOff",
            "0",
        ),
        (
            pod({"containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 3}}}]}),
            "0/2",
            "ExitCode:3",
            "0",
        ),
        (
            pod(
                {
                    "containerStatuses": [
                        {"name": "a", "state": {"terminated": {"exitCode": 137, "signal": 9}}}
                    ]
                }
            ),
            "0/2",
            "Signal:9",
            "0",
        ),
        (
            pod(
                {
                    **READY,
                    "containerStatuses": [
                        {"name": "a", "state": {"terminated": {"reason": "Completed"}}},
                        {"name": "b", "ready": True, "state": {"running": {}}},
                    ],
                }
            ),
            "1/2",
            "Running",
            "0",
        ),
        (
            pod(
                {
                    "phase": "Pending",
                    "initContainerStatuses": [
                        {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                        {"name": "j", "restartCount": 4, "state": {"running": {}}},
                    ],
                },
                spec={"initContainers": [{"name": "i"}, {"name": "j"}]},
            ),
            "0/2",
            "Init:1/2",
            "4",
        ),
        (
            pod(
                {
                    "initContainerStatuses": [
                        {"name": "i", "state": {"terminated": {"reason": "Error", "exitCode": 1}}}
                    ]
                },
                spec={"initContainers": [{"name": "i"}]},
            ),
            "0/2",
            "Init:Error",
            "0",
        ),
        (
            pod(
                {
                    "conditions": [{"type": "Initialized", "status": "True"}],
                    "containerStatuses": [{"name": "a", "ready": True}, {"name": "b", "ready": True}],
                    "initContainerStatuses": [
                        {"name": "s", "started": True, "ready": True, "state": {"running": {}}}
                    ],
                },
                spec={"initContainers": [{"name": "s", "restartPolicy": "Always"}]},
            ),
            "3/3",
            "Running",
            "0",
        ),
        (pod({}, metadata={"deletionTimestamp": stamp(0)}), "0/2", "Terminating", "0"),
        (pod({"phase": "Failed", "reason": "Evicted"}), "0/2", "Evicted", "0"),
        (
            pod(
                {
                    "containerStatuses": [
                        {
                            "name": "a",
                            "restartCount": 2,
                            "lastState": {"terminated": {"finishedAt": stamp(300)}},
                        }
                    ]
                }
            ),
            "0/2",
            "Running",
            "2 (5m ago)",
        ),
        (
            pod({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            "0/2",
            "SchedulingGated",
            "0",
        ),
    ],
)
def test_pods(obj: Obj, ready: str, status: str, restarts: str) -> None:
    found = row("pods", obj)
    assert (found["Ready"], found["Status"], found["Restarts"], found["Age"]) == (
        ready,
        status,
        restarts,
        "90s",
    )


@pytest.mark.parametrize(
    ("resource", "obj", "cells"),
    [
        (
            "services",
            {
                "spec": {
                    "type": "NodePort",
                    "clusterIP": "10.96.0.9",
                    "ports": [{"port": 80, "nodePort": 30080}],
                }
            },
            {"Type": "NodePort", "External-IP": "<none>", "Port(s)": "80:30080/TCP", "Selector": "<none>"},
        ),
        (
            "services",
            {
                "spec": {
                    "type": "LoadBalancer",
                    "ports": [{"port": 53, "protocol": "UDP"}],
                    "selector": {"a": "b"},
                }
            },
            {"External-IP": "<pending>", "Port(s)": "53/UDP", "Selector": "a=b"},
        ),
        (
            "services",
            {"spec": {"type": "ExternalName", "externalName": "x.example"}},
            {"External-IP": "x.example"},
        ),
        (
            "endpoints",
            {"subsets": [{"addresses": [{"ip": f"10.0.0.{i}"} for i in range(4)], "ports": [{"port": 80}]}]},
            {"Endpoints": "10.0.0.0:80,10.0.0.1:80,10.0.0.2:80 + 1 more..."},
        ),
        (
            "endpoints",
            {"subsets": [{"addresses": [{"ip": "fd00::1"}], "ports": [{"port": 1}]}]},
            {"Endpoints": "[fd00::1]:1"},
        ),
        (
            "endpointslices.discovery.k8s.io",
            {
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.0.0.1"]}],
                "ports": [{"port": None}, {"port": 8}],
            },
            {"AddressType": "IPv4", "Ports": "*,8", "Endpoints": "10.0.0.1"},
        ),
        (
            "endpointslices.discovery.k8s.io",
            {"addressType": "IPv4"},
            {"Ports": "<unset>", "Endpoints": "<unset>"},
        ),
        (
            "nodes",
            {
                "metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}},
                "spec": {"unschedulable": True},
                "status": {
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "addresses": [{"type": "InternalIP", "address": "172.30.1.11"}],
                },
            },
            {
                "Status": "Ready,SchedulingDisabled",
                "Roles": "control-plane",
                "Internal-IP": "172.30.1.11",
                "External-IP": "<none>",
            },
        ),
        ("nodes", {"status": {}}, {"Status": "Unknown", "Roles": "<none>"}),
        (
            "jobs.batch",
            {"spec": {"completions": 3}, "status": {"succeeded": 1, "startTime": stamp(60)}},
            {"Status": "Running", "Completions": "1/3", "Duration": "60s"},
        ),
        ("jobs.batch", {"spec": {"parallelism": 2}}, {"Completions": "0/1 of 2", "Duration": ""}),
        (
            "ingresses.networking.k8s.io",
            {"spec": {"rules": [{"host": "a"}, {"host": "b"}], "tls": [{}], "ingressClassName": "n"}},
            {"Class": "n", "Hosts": "a,b", "Ports": "80, 443", "Address": ""},
        ),
        (
            "ingresses.networking.k8s.io",
            {"spec": {"rules": [{}]}},
            {"Class": "<none>", "Hosts": "*", "Ports": "80"},
        ),
        (
            "networkpolicies.networking.k8s.io",
            {
                "spec": {
                    "podSelector": {
                        "matchExpressions": [{"key": "a", "operator": "In", "values": ["y", "x"]}]
                    }
                }
            },
            {"Pod-Selector": "a in (x,y)"},
        ),
        ("networkpolicies.networking.k8s.io", {"spec": {"podSelector": {}}}, {"Pod-Selector": "<none>"}),
        ("configmaps", {"data": {"a": ""}, "binaryData": {"b": ""}}, {"Data": 2}),
        (
            "events",
            {
                "involvedObject": {"kind": "Pod", "name": "p"},
                "lastTimestamp": stamp(30),
                "firstTimestamp": stamp(60),
                "type": "Warning",
                "reason": "Failed",
                "message": "no\n",
                "source": {"component": "kubelet", "host": "n1"},
                "count": 2,
            },
            {
                "Last Seen": "30s",
                "First Seen": "60s",
                "Object": "pod/p",
                "Message": "no",
                "Source": "kubelet, n1",
            },
        ),
        ("leases.coordination.k8s.io", {"spec": {"holderIdentity": "me"}}, {"Holder": "me"}),
    ],
)
def test_other_kinds(resource: str, obj: Obj, cells: Obj) -> None:
    found = row(resource, obj)
    assert {key: found[key] for key in cells} == cells


def test_every_kind_has_a_table_for_an_object_with_nothing_in_it() -> None:
    tables = Tables(now_s=lambda: NOW_S)
    for kind in Catalog():
        cells = tables.cells(kind, {"metadata": {"name": "bare"}})
        assert "bare" in cells, kind.id
        assert len(cells) == len(tables.columns(kind))
