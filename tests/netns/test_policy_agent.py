"""NetworkPolicy by agents: isolation from the first packet on, over restarts, reboots and others' doings."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from podlane.cni import client as cni
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import CNI_CONFIG, FAMILIES, TestNode, ask, two_nodes, wait_until
from tests.netns.test_agent import Echo

CLOSED = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def add(node: TestNode, name: str) -> str:
    """CNI ADD as a kubelet's: with the pod's name. Returns its IPv4 address."""
    fd = node.pods[name] = netns.new()
    with Rtnl(fd) as rt:
        rt.set_up("lo")
    args = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": name, "IgnoreUnknown": "1"}
    call = cni.call(
        node.dir / "cni.sock", "ADD", netns_fd=fd, container_id=name, config=CNI_CONFIG, args=args
    )
    return str(asyncio.run(call)["ips"][0]["address"].partition("/")[0])


def put_pod(api: Any, name: str, node: str, address: str = "", **labels: str) -> None:
    api.put(
        "Pod",
        name,
        metadata={"namespace": "default", "labels": labels},
        spec={"nodeName": node, "containers": [{"name": "c"}]},
        status={"phase": "Running", "podIPs": [{"ip": address}] if address else []},
    )


def put_policy(api: Any, name: str, **spec: Any) -> None:
    api.put("NetworkPolicy", name, metadata={"namespace": "default"}, spec=spec)


@contextmanager
def nodes(where: Path, extra: dict[str, Any] | None = None) -> Iterator[tuple[Any, TestNode, TestNode]]:
    with two_nodes(where, FAMILIES["both"], extra) as (api, one, two):
        api.put("Namespace", "default")
        yield api, one, two


def reaches(client: int, server: int, address: str) -> bool:
    with Echo(server, address) as echo:
        echo.socket.settimeout(0.3)
        try:
            return bool(ask(client, address, server=echo))
        except TimeoutError:
            return False


def guards(node: TestNode) -> dict[str, Any]:
    rows = json.loads(node.get("/tables")[1])["tables"]["guards"]
    return {each["row"]["pod"]["name"]: each["row"] for each in rows}


@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_a_pod_is_isolated_when_add_returns_and_never_open_before(tmp_path: Path, mode: str) -> None:
    with nodes(tmp_path, {"link": {"mode": mode}}) as (api, one, _):
        one.start()
        one.wait_ready()
        put_policy(api, "closed", podSelector={"matchLabels": {"app": "closed"}})
        put_pod(api, "client", one.name)
        put_pod(api, "server", one.name, app="closed")
        put_pod(api, "open", one.name)
        add(one, "client")
        server, free = add(one, "server"), add(one, "open")
        assert not reaches(one.pods["client"], one.pods["server"], server)
        assert reaches(one.pods["client"], one.pods["open"], free)
        assert reaches(one.fd, one.pods["server"], server)  # the pod's own node
        # A label is changed, and changed back: no restart of anything.
        put_pod(api, "server", one.name)
        wait_until(lambda: guards(one)["server"]["ingress"] is None, "the label counts")
        wait_until(lambda: reaches(one.pods["client"], one.pods["server"], server), "it is open")
        put_pod(api, "server", one.name, app="closed")
        wait_until(lambda: not reaches(one.pods["client"], one.pods["server"], server), "it is closed")


def test_what_the_api_does_not_show_is_closed_until_it_does(tmp_path: Path) -> None:
    with nodes(tmp_path) as (api, one, _):
        one.start()
        one.wait_ready()
        put_pod(api, "client", one.name)
        add(one, "client")
        late = add(one, "late")
        assert "pod default/late is attached, but the API does not show it yet" in one.log()
        assert not reaches(one.pods["client"], one.pods["late"], late)
        put_pod(api, "late", one.name)
        wait_until(lambda: guards(one)["late"]["known"], "the API shows it")
        wait_until(lambda: reaches(one.pods["client"], one.pods["late"], late), "it is open")


def test_policies_hold_without_the_agent_and_it_changes_nothing_when_it_is_back(tmp_path: Path) -> None:
    with nodes(tmp_path) as (api, one, two):
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.wait_ready()
        put_pod(api, "server", one.name, app="server")
        put_pod(api, "friend", two.name, role="friend")
        put_pod(api, "stranger", two.name)
        server, friend, stranger = add(one, "server"), add(two, "friend"), add(two, "stranger")
        put_pod(api, "friend", two.name, friend, role="friend")
        put_pod(api, "stranger", two.name, stranger)
        peers = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
        put_policy(api, "friends", podSelector={"matchLabels": {"app": "server"}}, ingress=[{"from": peers}])
        wait_until(lambda: not reaches(two.pods["stranger"], one.pods["server"], server), "it is closed")
        assert reaches(two.pods["friend"], one.pods["server"], server)
        one.stop(signal.SIGKILL)
        assert not reaches(two.pods["stranger"], one.pods["server"], server)
        assert reaches(two.pods["friend"], one.pods["server"], server)
        one.start()
        assert one.wait_ready()["operations"] == 0
        assert not reaches(two.pods["stranger"], one.pods["server"], server)
        assert reaches(two.pods["friend"], one.pods["server"], server)


def test_after_a_reboot_nothing_is_open_before_the_api_has_spoken(tmp_path: Path) -> None:
    with nodes(tmp_path) as (api, one, _):
        one.start()
        one.wait_ready()
        for name in ("client", "server"):
            put_pod(api, name, one.name)
            add(one, name)
        server = guards(one)["server"]["addresses"][0]
        put_policy(api, "closed", **CLOSED)
        wait_until(lambda: guards(one)["server"]["ingress"] is not None, "the policy counts")
        one.stop()
        netns.inside(one.fd, lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
        assert reaches(one.pods["client"], one.pods["server"], server)  # so a ruleset is what isolates
        api.close()
        one.start()
        wait_until(lambda: one.get("/status")[0] == 200, "the agent runs, without an API")
        assert not one.status()["ready"]
        assert not reaches(one.pods["client"], one.pods["server"], server)


def test_what_others_do_to_the_rules_is_undone(tmp_path: Path) -> None:
    with nodes(tmp_path) as (api, one, _):
        one.start()
        one.wait_ready()
        put_policy(api, "closed", **CLOSED)
        for name in ("client", "server"):
            put_pod(api, name, one.name)
            add(one, name)
        server = guards(one)["server"]["addresses"][0]
        assert not reaches(one.pods["client"], one.pods["server"], server)
        netns.inside(one.fd, lambda: subprocess.run(["nft", "flush", "ruleset"], check=True))
        wait_until(lambda: not reaches(one.pods["client"], one.pods["server"], server), "it is closed again")


def test_switched_off_nothing_of_it_is_left(tmp_path: Path) -> None:
    with nodes(tmp_path) as (api, one, _):
        one.start()
        one.wait_ready()
        put_policy(api, "closed", **CLOSED)
        for name in ("client", "server"):
            put_pod(api, name, one.name)
            add(one, name)
        server = guards(one)["server"]["addresses"][0]
        one.stop()
        one.start("--policy", "off")
        one.wait_ready()
        assert reaches(one.pods["client"], one.pods["server"], server)
        listed = netns.inside(one.fd, lambda: subprocess.check_output(["nft", "list", "tables"]))
        assert b"podlane-policy" not in listed
        assert "NetworkPolicy" not in one.status()["applied"]
