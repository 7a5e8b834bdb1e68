"""Conditions of the node's own Node, told to a real API server; what counts as the node's network."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from podlane.agent import node_conditions
from podlane.agent.node_conditions import Availability, Condition, NodeConditions, lacking, network
from podlane.agent.reconciler import EVERY_ROW
from podlane.compile.engine import Compiler
from podlane.compile.tables import Table
from podlane.compile.view import UNDERLAY, Change
from podlane.errors import KernelError
from podlane.kernel.driver import Failure
from podlane.model.config import parse
from podlane.model.local import Underlay
from podlane.model.objects import Node, NodeAddress, NodeSpec, NodeStatus, ObjectMeta
from podlane.watch import kubeconfig
from podlane.watch.http import ApiHttp
from tests.unit.api_lab import Lab, running

KUBELETS = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "fine"}


class Site:
    """One Node in a real API, and the conditions of its agent."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.seen: Node | None = None
        self.conditions = NodeConditions(ApiHttp(kubeconfig.load(lab.kubeconfig)), lambda: self.seen)

    async def on_server(self, call: Callable[[], Awaitable[Any]]) -> Any:
        return await asyncio.to_thread(self.lab.run, call)

    async def register(self, *conditions: dict[str, str]) -> None:
        """As a kubelet does."""
        client = self.lab.server.client
        made = await self.on_server(lambda: client.create("nodes", {"metadata": {"name": "node-1"}}))
        status = {"conditions": [KUBELETS, *conditions]}
        await self.on_server(lambda: client.update("nodes", {**made, "status": status}, subresource="status"))
        self.seen = Node(metadata=ObjectMeta(name="node-1", uid=made["metadata"]["uid"]))
        self.conditions.look()

    @property
    def node(self) -> dict[str, Any]:
        record = self.lab.server.store.get("nodes", "", "node-1")
        assert record is not None
        return record.obj

    def said(self, type_: str = "NetworkUnavailable") -> dict[str, Any]:
        found = {c["type"]: c for c in self.node["status"]["conditions"]}
        assert found["Ready"] == KUBELETS
        return found.get(type_, {})


def run(where: Path, story: Callable[[Site], Awaitable[None]]) -> None:
    async def main(lab: Lab) -> None:
        site = Site(lab)
        task = asyncio.create_task(site.conditions.run())
        try:
            await story(site)
        finally:
            task.cancel()
            await asyncio.wait({task})

    with running(where) as lab:
        asyncio.run(main(lab))


async def until(what: Callable[[], bool]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to be")


def test_they_are_written_where_they_differ_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_conditions, "AGAIN_S", 0.05)

    async def story(site: Site) -> None:
        site.conditions.say(network(["no podCIDR"]))
        await site.register()
        await until(lambda: site.said().get("status") == "True")
        assert site.said()["reason"] == "PodlaneIsNotReady"
        assert site.said()["message"] == "no podCIDR"
        site.conditions.say(network([]), Condition("podlane.dev/Other", "True", "Found", "a thing"))
        await until(lambda: site.said().get("status") == "False")
        assert site.said()["reason"] == "PodlaneIsUp"
        assert site.said("podlane.dev/Other")["message"] == "a thing"
        # It looks again and again, and as nobody has written anything, it writes nothing.
        version = site.node["metadata"]["resourceVersion"]
        await asyncio.sleep(0.3)
        assert site.node["metadata"]["resourceVersion"] == version
        # A second life finds what the first one wrote.
        again = NodeConditions(ApiHttp(kubeconfig.load(site.lab.kubeconfig)), lambda: site.seen)
        again.say(network([]))
        task = asyncio.create_task(again.run())
        await asyncio.sleep(0.2)
        task.cancel()
        assert site.node["metadata"]["resourceVersion"] == version
        # A route controller says otherwise; and then the Node is registered anew.
        client = site.lab.server.client
        other = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": ""}
        status = {**site.node["status"], "conditions": [KUBELETS, other]}
        node = site.node
        await site.on_server(lambda: client.update("nodes", {**node, "status": status}, subresource="status"))
        await until(lambda: site.said().get("reason") == "PodlaneIsUp")

    run(tmp_path, story)


def test_a_node_that_is_registered_anew_is_told_at_once(tmp_path: Path) -> None:
    async def story(site: Site) -> None:
        site.conditions.say(network([]))
        await site.register()
        await until(lambda: site.said().get("status") == "False")
        await site.on_server(lambda: site.lab.server.client.delete("nodes", "node-1"))
        await site.register({**network(["before"])._asdict(), "lastTransitionTime": "2026-01-01T00:00:00Z"})
        await until(lambda: site.said()["status"] == "False")
        assert site.said()["lastTransitionTime"] > "2026-01-02"

    run(tmp_path, story)


def test_the_transition_time_is_the_statuss() -> None:
    old = node_conditions._Known("NetworkUnavailable", "True", "X", "one", "2026-01-01T00:00:00Z")
    now = "2026-02-02T00:00:00Z"
    (same,) = node_conditions.differing([network(["two"])], [old], now)
    assert (same["lastTransitionTime"], same["lastHeartbeatTime"]) == ("2026-01-01T00:00:00Z", now)
    (other,) = node_conditions.differing([network([])], [old], now)
    assert other["lastTransitionTime"] == now
    assert node_conditions.differing([network(["one"])], [], now)[0]["message"] == "one"


class Said:
    def __init__(self) -> None:
        self.last: Condition | None = None

    def say(self, condition: Condition) -> None:
        self.last = condition


def test_a_moments_trouble_is_not_told() -> None:
    said, missing = Said(), ["links: no such device"]
    told = Availability(said, lambda: True, lambda: missing)  # type: ignore[arg-type]
    told.settled()
    told.look()
    assert said.last is None
    missing.clear()
    told.look()
    assert said.last == network([])
    missing.append("routes: refused")
    told.look()
    assert said.last == network([])
    told.look()
    assert said.last == network(["routes: refused"])


def test_what_of_a_nodes_own_network_is_not_there() -> None:
    def node(name: str, number: int, **spec: Any) -> Node:
        return Node(
            metadata=ObjectMeta(name=name, uid=name),
            spec=NodeSpec(**spec),
            status=NodeStatus([NodeAddress("InternalIP", f"172.30.1.{number}")]),
        )

    compiler = Compiler("node-1", parse({"ipFamilies": ["IPv4"]}))
    mine, other = node("node-1", 11, pod_cidrs=["10.244.1.0/24"]), node("node-2", 12)
    compiler.apply(
        [
            Change("Node", None, mine),
            Change("Node", None, other),
            Change(UNDERLAY, None, Underlay("eth0", 1500)),
        ]
    )
    refusal = KernelError.of(95, "make plvxlan")
    assert lacking(compiler, []) == [], "what another node lacks is its own affair"
    assert lacking(compiler, [Failure(Table.LINKS, "plvxlan", refusal)]) == [f"links: {refusal}"]
    assert lacking(compiler, [Failure(Table.FRONTENDS, EVERY_ROW, refusal)])
    assert lacking(compiler, [Failure(Table.ROUTES, "10.244.9.0/24", refusal)]) == []
    compiler.apply([Change("Node", mine, node("node-1", 11, pod_cidrs=["nonsense"]))])
    assert "spec.podCIDRs" in lacking(compiler, [])[0]
