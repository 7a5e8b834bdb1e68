"""`podlane status` of a cluster: what is wrong is found in what the API says, and nothing else is."""

from __future__ import annotations

import copy
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from podlane.agent.degradation import Degradation, degraded
from podlane.agent.node_conditions import Condition
from podlane.compile.engine import Compiler
from podlane.compile.tables import Table
from podlane.errors import KernelError
from podlane.kernel.driver import Failure
from podlane.lab.cluster_status import gather, here
from podlane.lab.rest import Client
from podlane.model import agents, config
from podlane.model.agents import AGENT_ANNOTATION, AgentFacts, digest
from podlane.observe.cluster_status import ClusterStatus, Found, judge
from podlane.observe.cluster_text import lines
from tests.unit.api_lab import running

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
FACTS = AgentFacts("1.0.0", "vxlan", "0123456789ab", ["IPv4", "IPv6"])
UP = {"type": "NetworkUnavailable", "status": "False", "reason": "PodlaneIsUp"}


def node(name: str, facts: AgentFacts | None = FACTS, **more: str) -> dict[str, Any]:
    told = [UP, {"type": "Ready", "status": "False"}]
    told += [
        {"type": f"podlane.dev/{kind}", "status": status, "reason": kind, "message": "so"}
        for kind, status in more.items()
    ]
    return {
        "metadata": {"name": name, "annotations": {AGENT_ANNOTATION: facts.annotation} if facts else {}},
        "spec": {"podCIDRs": ["10.244.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}], "conditions": told},
    }


def pod(node_name: str, component: str = "agent", **status: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "podlane", "app.kubernetes.io/component": component}
    state = {
        "phase": "Running",
        "containerStatuses": [{"ready": True, "restartCount": 2, "state": {"running": {}}}],
    }
    return {
        "metadata": {
            "name": f"podlane-{node_name or component}",
            "namespace": "podlane-system",
            "labels": labels,
        },
        "spec": {"nodeName": node_name},
        "status": {**state, **status},
    }


def rollout(**status: Any) -> dict[str, Any]:
    whole = {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "observedGeneration": 4}
    meta = {"name": "podlane", "namespace": "podlane-system", "generation": 4}
    return {"metadata": meta, "status": whole | status}


LEASE = {
    "metadata": {"name": "podlane-controller"},
    "spec": {"holderIdentity": "a_1", "leaseDurationSeconds": 15, "renewTime": "2026-01-01T11:59:57.000000Z"},
}
POOL = {
    "metadata": {"name": "public"},
    "status": {
        "assignedIPv4": 3,
        "availableIPv4": 7,
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}


def told(**changes: list[Any]) -> ClusterStatus:
    whole: dict[str, list[Any]] = {
        "nodes": [node("one"), node("two")],
        "pods": [pod("one"), pod("two"), pod("", "controller")],
        "leases": [LEASE],
        "pools": [POOL],
        "daemon_sets": [rollout()],
        "unread": [],
    }
    return judge("https://api", Found(**(whole | changes)), NOW)


def test_a_healthy_cluster_has_no_problem() -> None:
    status = told()
    assert (status.ready, status.problems, status.notes) == (True, [], [])
    assert status.nodes[0].agent == FACTS
    assert (status.nodes[0].pod, status.nodes[0].state, status.nodes[0].restarts) == (
        "podlane-system/podlane-one",
        "Running",
        2,
    )
    assert (status.controller.leader, status.controller.renewed_ago_s) == ("a_1", 3)
    assert status.pools[0].available == {"IPv4": 7}
    shown = "\n".join(lines(status))
    assert "pool public: IPv4 3 assigned, 7 left" in shown
    assert "a_1 leads, renewed 3 s ago" in shown
    found = json.loads(status.json())
    assert (found["apiVersion"], found["kind"]) == ("podlane.dev/v1alpha1", "ClusterStatus")
    assert found["nodes"][0]["podCIDRs"] == ["10.244.0.0/24"]


def lease(**spec: Any) -> dict[str, Any]:
    return {**LEASE, "spec": {**LEASE["spec"], **spec}}


def pool(**status: Any) -> dict[str, Any]:
    return {**POOL, "status": {**POOL["status"], **status}}


WAITING = {"containerStatuses": [{"ready": False, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"pods": [pod("one", **WAITING), pod("two")]},
            "node one: the agent's pod podlane-system/podlane-one is not well: CrashLoopBackOff",
        ),
        (
            {"pods": [pod("one", containerStatuses=[{"ready": False}])]},
            "node one: the agent's pod podlane-system/podlane-one is not well: NotReady",
        ),
        (
            {"nodes": [node("one", None)], "pods": []},
            "node one: no agent of podlane runs there, and none has told of itself",
        ),
        (
            {"nodes": [node("one", ForeignFirewall="True")]},
            "node one: podlane.dev/ForeignFirewall ForeignFirewall: so",
        ),
        ({"nodes": [{**node("one"), "spec": {}}]}, "node one: no podCIDR yet"),
        (
            {"pods": [pod("", "controller", **WAITING)]},
            "the controller's pod podlane-system/podlane-controller is not well: CrashLoopBackOff",
        ),
        ({"leases": []}, "no controller leads: there is no Lease podlane-controller"),
        (
            {"leases": [lease(holderIdentity="")]},
            "no controller leads: the Lease podlane-controller is not held",
        ),
        (
            {"leases": [lease(renewTime="2026-01-01T11:50:00Z")]},
            "no controller leads: a_1 renewed its Lease 600 s ago",
        ),
        ({"leases": [lease(renewTime=None)]}, "no controller leads: a_1 renewed its Lease never"),
        ({"pools": [pool(availableIPv4=0)]}, "pool public has no IPv4 address left"),
        (
            {
                "pools": [
                    pool(
                        conditions=[
                            {"type": "Ready", "status": "False", "reason": "Overlaps", "message": "x"}
                        ]
                    )
                ]
            },
            "pool public cannot be used: Overlaps: x",
        ),
    ],
)
def test_what_is_wrong_is_told(changes: dict[str, list[Any]], problem: str) -> None:
    status = told(**changes)
    assert not status.ready
    assert problem in status.problems
    assert f"! {problem}" in list(lines(status))


def test_conditions_that_say_no_and_agents_that_run_by_systemd_are_no_problem() -> None:
    assert told(nodes=[node("one", Degraded="False")], pods=[]).ready


def test_what_agents_do_not_agree_on_is_told() -> None:
    newer = msgspec.structs.replace(FACTS, version="1.1.0", config="ba9876543210")
    many = [node(f"n{i}") for i in range(5)]
    status = told(nodes=[*many, node("last", newer)], pods=[])
    assert status.ready
    assert status.notes == [
        "agents have different versions: 1.0.0 on 5 nodes, 1.1.0 on last",
        "agents have different configurations: 0123456789ab on 5 nodes, ba9876543210 on last",
    ]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"updatedNumberScheduled": 1}, "1 of 2 nodes have the new one"),
        ({"observedGeneration": 3}, "0 of 2 nodes have the new one"),
        ({"updatedNumberScheduled": None}, "0 of 2 nodes have the new one"),
    ],
)
def test_what_is_being_rolled_out_is_told(changes: dict[str, Any], note: str) -> None:
    status = told(daemon_sets=[rollout(**changes)])
    assert status.ready
    assert status.notes == [f"podlane-system/podlane is being rolled out: {note}"]


def test_an_annotation_of_another_version_is_read_as_far_as_it_goes() -> None:
    assert agents.read('{"version": "9.9.9", "news": [1]}') == AgentFacts("9.9.9")
    assert agents.read("{") is None
    strange = node("one", None)
    strange["metadata"]["annotations"] = {AGENT_ANNOTATION: "[]"}
    assert told(nodes=[strange]).nodes[0].agent is None


def test_the_digest_of_a_configuration_knows_no_secret() -> None:
    def of(**bgp: Any) -> str:
        return digest(config.parse({"backend": {"type": "bgp"}, "bgp": bgp}, "test"))

    assert of(password="hunter22") == of(password="hunter23") != of(asNumber=65001)
    assert len(of()) == 12


def test_many_nodes_are_not_all_listed_but_those_with_problems_are() -> None:
    bad = node("bad", Degraded="True")
    status = told(nodes=[*(node(f"n{i}") for i in range(200)), bad], pods=[])
    shown = list(lines(status))
    assert any(line.startswith("bad ") for line in shown)
    assert "and 150 more that have no problem" in shown


# --- the condition --------------------------------------------------------------------------------


class Conditions:
    def __init__(self) -> None:
        self.said: list[Condition] = []

    def say(self, *conditions: Condition) -> None:
        self.said += conditions


def test_a_refusal_is_told_when_it_lasts_and_taken_back() -> None:
    conditions = Conditions()
    compiler = Compiler("node-1", config.DEFAULT)
    failures: list[Failure] = []
    watch = Degradation(conditions, lambda: degraded(compiler, failures))  # type: ignore[arg-type]
    watch.settled()
    assert [c.status for c in conditions.said] == ["False"]
    failures += [Failure(Table.FRONTENDS, n, KernelError.of(12, f"add {n}")) for n in range(7)]
    watch.look()
    assert len(conditions.said) == 1
    watch.look()
    assert conditions.said[-1].status == "True"
    assert conditions.said[-1].message.count("frontends: add") == 5
    assert conditions.said[-1].message.endswith("and 2 more")
    failures.clear()
    watch.look()
    assert conditions.said[-1].status == "False"


def test_what_was_refused_at_the_start_only_is_taken_back() -> None:
    conditions = Conditions()
    found = [Condition("x", status, "y", "z") for status in ("True", "False", "False")]
    watch = Degradation(conditions, lambda: found.pop(0))  # type: ignore[arg-type]
    watch.settled()
    watch.look()
    watch.look()
    assert [c.status for c in conditions.said] == ["False"]


# --- from a real API ------------------------------------------------------------------------------


def test_it_is_gathered_from_an_api(tmp_path: Path) -> None:
    with running(tmp_path) as lab:
        made = copy.deepcopy(node("one"))
        lab.run(lambda: lab.server.client.create("nodes", {"apiVersion": "v1", "kind": "Node", **made}, ""))
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
        held = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **lease(renewTime=stamp)}
        lab.run(lambda: lab.server.client.create("leases.coordination.k8s.io", held, "kube-system"))
        with Client.from_kubeconfig(lab.kubeconfig) as client:
            status = gather(client, tmp_path / "no.sock")
            assert (status.problems, status.notes, status.here) == ([], [], None)
            assert [n.name for n in status.nodes] == ["one"]
            assert status.controller.leader == "a_1"
            stray = tmp_path / "agent.sock"
            stray.touch()
            assert "does not answer" in (here(stray, []) or {})["error"]
            assert "does not answer" in gather(client, stray).problems[0]
