"""Which endpoints' pods are no more: from what the agent knows, and from what the API says of other nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from podlane.agent.gone import GonePods
from podlane.compile.engine import Compiler
from podlane.compile.view import ATTACHMENT, Change
from podlane.errors import NotFoundError
from podlane.model.addresses import Address, address
from podlane.model.config import NetworkConfig
from podlane.model.local import Attachment
from podlane.watch.http import ApiHttp
from tests.unit.observed_cluster import node

CONFIG = NetworkConfig()


class Api:
    """Pods by node, as the API lists them."""

    def __init__(self, pods: Mapping[str, list[tuple[str, str]]]) -> None:
        self.pods, self.asked = pods, cast("list[str]", [])

    async def get(self, path: str, query: Mapping[str, str]) -> bytes:
        assert path == "/api/v1/pods"
        name = query["fieldSelector"].removeprefix("spec.nodeName=")
        self.asked.append(name)
        if name not in self.pods:
            raise NotFoundError("not now")
        items: list[Any] = [
            {
                "spec": {"nodeName": name, "containers": []},
                "status": {"phase": phase, "podIPs": [{"ip": where}]},
            }
            for where, phase in self.pods[name]
        ]
        return json.dumps({"items": items}).encode()


def gone(api: Api, *texts: str) -> set[str]:
    """Those of the addresses that are gone, asked as the sweeper does: from another thread."""

    async def scenario() -> frozenset[Address]:
        compiler = Compiler("node-1", CONFIG)
        held = Attachment("c1", "eth0", "pl1", "02:00:00:00:00:01", (address("10.244.1.2"),))
        compiler.apply([*(Change("Node", None, node(i)) for i in (1, 2, 3)), Change(ATTACHMENT, None, held)])
        found = GonePods(cast(ApiHttp, api), CONFIG, asyncio.get_running_loop())
        assert await asyncio.to_thread(found.among, asked) == frozenset()  # nothing is known yet
        found.view = compiler.view
        return await asyncio.to_thread(found.among, asked)

    asked = frozenset(map(address, texts))
    return {str(each) for each in asyncio.run(scenario())}


def test_an_address_of_this_node_is_gone_when_no_pod_is_attached_with_it() -> None:
    api = Api({})
    assert gone(api, "10.244.1.2", "10.244.1.3") == {"10.244.1.3"}
    assert api.asked == []


def test_of_other_nodes_the_api_is_asked_once_each() -> None:
    api = Api({"node-2": [("10.244.2.5", "Running"), ("10.244.2.6", "Failed")], "node-3": []})
    found = gone(api, "10.244.2.5", "10.244.2.6", "10.244.2.7", "10.244.3.1", "fd00:10:244:3::1")
    assert found == {"10.244.2.6", "10.244.2.7", "10.244.3.1", "fd00:10:244:3::1"}
    assert sorted(api.asked) == ["node-2", "node-3"]


def test_nothing_is_gone_that_the_api_cannot_be_asked_for() -> None:
    assert gone(Api({"node-3": []}), "10.244.2.5", "10.244.3.5") == {"10.244.3.5"}


@pytest.mark.parametrize(
    ("where", "is_gone"),
    [("10.244.9.9", True), ("fd00:10:244:9::9", True), ("172.30.1.12", False), ("203.0.113.7", False)],
)
def test_what_is_of_no_node_is_gone_if_it_was_a_pods(where: str, is_gone: bool) -> None:
    assert gone(Api({}), where) == ({where} if is_gone else set())


def test_an_agent_that_has_ended_ends_nothing() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    found = GonePods(cast(ApiHttp, Api({})), CONFIG, loop)
    assert found.among(frozenset({address("10.244.1.3")})) == frozenset()
