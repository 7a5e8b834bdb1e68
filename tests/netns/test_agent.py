"""Agents against an API, on real namespaces: pods of two nodes speak over VXLAN, and stay able to."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podlane.compile.tables import Table
from podlane.errors import CniError
from podlane.kernel import netns
from podlane.kernel.rtnl import PROTOCOL, Rtnl
from podlane.kernel.rtnl.driver import RtnlDriver
from tests.netns.agent_nodes import FAMILIES, Echo, TestNode, ask, join, two_nodes, wait_until
from tests.netns.fake_api import FakeApi


@contextmanager
def running(
    where: Path, families: str = "both", extra: dict[str, Any] | None = None
) -> Iterator[tuple[FakeApi, TestNode, TestNode]]:
    with two_nodes(where, FAMILIES[families], extra) as (api, one, two):
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.wait_ready()
        yield api, one, two


def takes_pods(node: TestNode) -> bool:
    try:
        node.cni("STATUS", "", node.fd)
    except CniError:
        return False
    return True


def actual(node: TestNode) -> dict[Table, dict[Any, Any]]:
    driver = RtnlDriver(node.fd)
    try:
        return driver.actual()
    finally:
        driver.close()


def assert_reaches(client_fd: int, server_fd: int, address: str, sees: str) -> None:
    with Echo(server_fd, address) as server:
        assert ask(client_fd, address, server=server) == sees


@pytest.mark.parametrize("families", FAMILIES)
def test_pods_and_nodes_reach_each_other_without_nat(tmp_path: Path, families: str) -> None:
    with running(tmp_path, families) as (_, one, two):
        near, mate, far = one.add_pod("near"), one.add_pod("mate"), two.add_pod("far")
        for family in FAMILIES[families]:
            at = FAMILIES[families].index(family)
            assert_reaches(one.pods["near"], two.pods["far"], far[family], near[family])
            assert_reaches(two.pods["far"], one.pods["near"], near[family], far[family])
            assert_reaches(one.pods["near"], one.pods["mate"], mate[family], near[family])
            assert_reaches(one.pods["near"], one.fd, one.addresses[at], near[family])
            assert_reaches(one.fd, one.pods["near"], near[family], one.addresses[at])
            assert_reaches(one.pods["near"], two.fd, two.addresses[at], near[family])
            assert_reaches(one.fd, two.pods["far"], far[family], one.addresses[at])


def test_an_ipv6_underlay_costs_70_bytes_and_carries_ipv4(tmp_path: Path) -> None:
    FAMILIES["IPv6 first"] = ["IPv6", "IPv4"]
    with running(tmp_path, "IPv6 first") as (_, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        link = actual(one)[Table.LINKS]["plvxlan"]
        assert (link.mtu_bytes, str(link.local)) == (1430, "fd00:172:30::1")
        assert_reaches(one.pods["near"], two.pods["far"], far["IPv4"], near["IPv4"])


def test_a_second_start_finds_nothing_to_do(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, two):
        one.add_pod("a")
        two.add_pod("b")
        before = actual(one)
        one.stop(signal.SIGKILL)
        one.start()
        status = one.wait_ready()
        assert status["operations"] == 0
        assert status["resyncs"] == 10  # one a driver
        assert actual(one) == before
        assert len(before[Table.ROUTES]) == 4  # own pod and peer, both families


def test_sigterm_ends_it_and_leaves_the_network(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, _two):
        before = actual(one)
        assert one.stop() == 0
        assert actual(one) == before
        assert not (one.dir / "agent.sock").exists()


class Stream:
    """Numbered datagrams from one namespace to an echo in another, without a pause longer than a ms."""

    def __init__(self, client_fd: int, server_fd: int, address: str) -> None:
        self._server = Echo(server_fd, address)
        self._client = netns.socket_in(client_fd, 10 if ":" in address else 2, 2)
        self._client.connect((address, 9999))
        self._client.settimeout(1)
        self._stop, self._served = threading.Event(), threading.Event()
        self.sent = self.answered = 0
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._ask)]

    def __enter__(self) -> Stream:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        serves, asks = self._threads
        self._stop.set()
        asks.join()  # what it asked last is answered
        self._served.set()
        serves.join()
        self._server.socket.close()
        self._client.close()

    def _serve(self) -> None:
        self._server.socket.settimeout(0.1)
        while not self._served.is_set():
            try:
                self._server.answer()
            except TimeoutError:
                continue

    def _ask(self) -> None:
        while not self._stop.is_set():
            self._client.send(b"%d" % self.sent)
            self.sent += 1
            try:
                self._client.recv(2048)
                self.answered += 1
            except TimeoutError:
                pass
            time.sleep(0.001)


def test_kill_9_and_start_again_loses_no_packet_of_a_running_stream(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, two):
        one.add_pod("near")
        far = two.add_pod("far")
        with Stream(one.pods["near"], two.pods["far"], far["IPv4"]) as stream:
            for node in (one, two):
                node.stop(signal.SIGKILL)
                at = stream.answered
                wait_until(lambda at=at: stream.answered > at + 20, "the stream goes on")
                node.start()
                assert node.wait_ready()["operations"] == 0
                at = stream.answered
                wait_until(lambda at=at: stream.answered > at + 20, "the stream goes on")
        assert stream.answered == stream.sent


def test_pods_come_and_go_while_the_api_is_away(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["both"]) as (api, one, two):
        one.start()
        one.wait_ready()
        before = actual(one)
        api.close()
        wait_until(lambda: one.status()["apiAway"], "the agent notices that the API is away")
        one.add_pod("a")
        assert len(actual(one)[Table.ROUTES]) == len(before[Table.ROUTES]) + 2
        one.delete_pod("a")
        assert actual(one) == before
        with FakeApi([node.listener() for node in (one, two)]) as again:
            for node in (one, two):
                again.put("Node", node.name, **node.object)
            wait_until(lambda: not one.status()["apiAway"], "the API is back")
            assert actual(one) == before


def test_an_agent_started_while_the_api_is_away_removes_nothing(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["both"]) as (api, one, _two):
        one.start()
        one.wait_ready()
        before = actual(one)
        one.stop(signal.SIGKILL)
        api.delete("Node", "node-2")
        api.close()
        one.start()
        blockers = wait_until(lambda: one.status().get("blockers"), "the agent is up")
        assert any("Node has not been listed yet" in each for each in blockers)
        assert one.get("/readyz")[0] == 503
        assert actual(one) == before


@pytest.mark.parametrize("mode", ["routed", "bridge"])
def test_an_agent_started_while_the_api_is_away_attaches_pods(tmp_path: Path, mode: str) -> None:
    with two_nodes(tmp_path, FAMILIES["both"], {"link": {"mode": mode}}) as (api, one, two):
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.wait_ready()
        first, far = one.add_pod("first"), two.add_pod("far")
        one.stop(signal.SIGKILL)
        api.close()
        one.start()
        wait_until(lambda: takes_pods(one), "the agent is up")
        assert one.status()["blockers"]
        second = one.add_pod("second")
        for family in FAMILIES["both"]:
            assert first[family] != second[family]
            assert_reaches(one.pods["second"], one.pods["first"], first[family], second[family])
            assert_reaches(one.pods["second"], two.pods["far"], far[family], second[family])
        one.delete_pod("first")
        with FakeApi([node.listener() for node in (one, two)]) as again:
            for node in (one, two):
                again.put("Node", node.name, **node.object)
            one.wait_ready()
            for at, family in enumerate(FAMILIES["both"]):
                assert_reaches(one.fd, one.pods["second"], second[family], one.addresses[at])


def test_a_peer_that_leaves_takes_its_rows_along_and_no_others(tmp_path: Path) -> None:
    with running(tmp_path) as (api, one, _two):
        one.add_pod("a")
        api.delete("Node", "node-2")
        wait_until(lambda: not actual(one)[Table.FDB], "node-2's forwarding entry is gone")
        wait_until(lambda: len(actual(one)[Table.ROUTES]) == 2, "only the pod's own routes remain")
        assert list(actual(one)[Table.LINKS]) == ["plvxlan"]


def test_the_own_node_deleted_and_registered_anew_costs_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as (api, one, _two):
        before, operations = actual(one), one.status()["operations"]
        api.delete("Node", "node-1")
        api.put("Node", "node-1", **one.object)
        wait_until(lambda: "NetworkUnavailable" in api.conditions("node-1"), "the new Node is told as well")
        api.put("Node", "node-3", spec={}, status={})
        wait_until(lambda: any("node-3" in each for each in one.status()["refused"]), "news were read")
        assert actual(one) == before
        assert one.status()["operations"] == operations


def test_two_nodes_that_claim_one_prefix_are_told_and_the_older_has_it(tmp_path: Path) -> None:
    with running(tmp_path) as (api, one, two):
        young = {"creationTimestamp": "2030-01-01T00:00:00Z"}
        claim = {**two.object, "status": {"addresses": [{"type": "InternalIP", "address": "172.30.1.77"}]}}
        before = actual(one)
        api.put("Node", "node-9", metadata=young, **claim)
        told = wait_until(
            lambda: [e for e in one.status()["refused"] if "peers node node-2 is older" in e],
            "the contradiction is told",
        )
        assert "peers node node-9 must do without" in told[0]
        assert before[Table.NEIGHBOURS].items() <= actual(one)[Table.NEIGHBOURS].items()
        assert actual(one)[Table.FDB].items() >= before[Table.FDB].items()
        api.delete("Node", "node-2")
        wait_until(
            lambda: (
                {str(e.remote) for e in actual(one)[Table.FDB].values()} == {"172.30.1.77"}
                and not one.status()["refused"]
            ),
            "the loser comes back",
        )
        assert actual(one)[Table.NEIGHBOURS] != before[Table.NEIGHBOURS]


@pytest.mark.parametrize(
    "what", ["route", "neighbour", "forwarding entry", "device", "device down", "pod's link down", "address"]
)
def test_what_someone_removes_by_hand_is_repaired(tmp_path: Path, what: str) -> None:
    with running(tmp_path) as (_, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        before = actual(one)
        with Rtnl(one.fd) as rt:
            row = next(r for r in before[Table.ROUTES].values() if r.device == "plvxlan")
            entry = next(iter(before[Table.FDB].values()))
            match what:
                case "route":
                    rt.delete_route(row.destination, device=row.device, protocol=PROTOCOL)
                case "neighbour":
                    rt.delete_neighbour("plvxlan", row.via)
                case "forwarding entry":
                    rt.delete_fdb("plvxlan", entry.mac, entry.remote)
                case "device":
                    rt.delete_link("plvxlan")
                case "device down":
                    rt.set_down("plvxlan")
                case "pod's link down":
                    rows = before[Table.ROUTES].values()
                    rt.set_down(next(r.device for r in rows if r.device != "plvxlan"))
                case "address":
                    held = rt.addresses("plvxlan")
                    rt.delete_address("plvxlan", held[0].address)
        wait_until(lambda: actual(one) == before, f"{what} is back")
        assert_reaches(one.pods["near"], two.pods["far"], far["IPv4"], near["IPv4"])


def test_what_someone_changes_by_hand_is_put_right(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        before = actual(one)
        there = [r for r in before[Table.ROUTES].values() if r.device == "plvxlan"]
        entry = next(iter(before[Table.FDB].values()))

        def by_hand(change: Callable[[Rtnl], None], what: str) -> None:
            with Rtnl(one.fd) as rt:
                change(rt)
            wait_until(lambda: actual(one) == before, f"{what} is as it was")

        for row in there:
            by_hand(
                lambda rt, row=row: rt.set_neighbour("plvxlan", row.via, "02:00:00:00:00:99"), "a neighbour"
            )
            by_hand(
                lambda rt, row=row: rt.add_route(row.destination, device="eth0", replace=True),
                f"the route to {row.destination}",
            )
        by_hand(lambda rt: rt.set_fdb("plvxlan", entry.mac, ip_address("172.30.1.99")), "an entry")
        by_hand(lambda rt: rt.set_mtu("plvxlan", 1300), "the MTU")
        by_hand(lambda rt: rt.set_mac("plvxlan", "02:00:00:00:00:98"), "the MAC address")
        for family, address in far.items():
            assert_reaches(one.pods["near"], two.pods["far"], address, near[family])


def test_a_route_of_anothers_in_the_place_of_ours_is_told_and_ours_comes_back(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two):
        before = actual(one)
        pods = ip_network("10.244.2.0/24")
        with Rtnl(one.fd) as rt:
            rt.add_route(pods, device="eth0", protocol=4, replace=True)
            wait_until(
                lambda: [f for f in one.status()["failures"] if "not podlane's" in f["error"]], "it is told"
            )
            assert [r.protocol for r in rt.routes() if r.destination == pods] == [4]
            rt.delete_route(pods, device="eth0", protocol=4)
        wait_until(lambda: actual(one) == before and not one.status()["failures"], "ours is back")


def test_a_node_that_comes_back_with_other_addresses_is_reached_there(tmp_path: Path) -> None:
    with running(tmp_path) as (api, one, two):
        one.add_pod("near")
        before = actual(one)
        api.delete("Node", two.name)
        wait_until(lambda: not actual(one)[Table.FDB], "the node has gone")
        two.stop(signal.SIGKILL)
        with Rtnl(two.fd) as rt:
            rt.delete_link("plvxlan")
            for text in ("172.30.1.2/24", "fd00:172:30::2/112"):
                rt.delete_address("eth0", ip_interface(text))
            for text in ("172.30.1.22/24", "fd00:172:30::22/112"):
                rt.add_address("eth0", ip_interface(text))
        addresses = [{"type": "InternalIP", "address": a} for a in ("172.30.1.22", "fd00:172:30::22")]
        cidrs = {"podCIDRs": ["10.244.22.0/24", "fd00:10:244:22::/64"]}
        api.put("Node", two.name, spec=cidrs, status={"addresses": addresses})
        two.start()
        two.wait_ready()
        far = two.add_pod("far")
        assert far["IPv4"].startswith("10.244.22.")
        wait_until(
            lambda: str(ip_network("10.244.22.0/24")) in map(str, actual(one)[Table.ROUTES]), "a route"
        )
        near = one.add_pod("mate")
        for family, address in far.items():
            assert_reaches(one.pods["mate"], two.pods["far"], address, near[family])
        assert {str(e.remote) for e in actual(one)[Table.FDB].values()} == {"172.30.1.22"}
        assert (
            not before[Table.ROUTES].keys()
            & set(map(ip_network, ("10.244.2.0/24", "fd00:10:244:2::/64")))
            & (actual(one)[Table.ROUTES].keys())
        )


def test_what_podlane_did_not_make_is_left_alone(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"]) as (_, one, _two):
        foreign, stale = ip_network("203.0.113.0/24"), ip_network("10.244.77.0/24")
        with Rtnl(one.fd) as rt:
            rt.add_route(foreign, device="eth0", protocol=4)
            rt.add_route(stale, device="eth0")
        one.start()
        one.wait_ready()
        with Rtnl(one.fd) as rt:
            there = {route.destination for route in rt.routes()}
        assert foreign in there
        assert stale not in there


def test_a_node_whose_address_no_link_has_is_told_so_and_recovers(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"]) as (_, one, _two):
        with Rtnl(one.fd) as rt:
            rt.delete_address("eth0", ip_interface("172.30.1.1/24"))
            rt.add_address("eth0", ip_interface("192.0.2.1/24"))
        one.start()
        complaint = "no link of this node has 172.30.1.1; there is eth0 192.0.2.1. Set"
        wait_until(lambda: any(complaint in b for b in one.status().get("blockers", [])), "it complains")
        with Rtnl(one.fd) as rt:
            rt.add_address("eth0", ip_interface("172.30.1.1/24"))
        one.wait_ready()


def test_a_node_that_another_machine_has_registered_too_is_told_and_not_written(tmp_path: Path) -> None:
    """Two machines of one name: the Node shows what the other one says."""
    theirs = {"addresses": [{"type": "InternalIP", "address": "172.30.1.77"}]}
    underlay = {"podlane.dev/underlay": "said by another"}
    with running(tmp_path, "IPv4") as (api, one, two):
        pod, far = one.add_pod("a"), two.add_pod("b")
        api.put("Node", "node-1", metadata={"annotations": underlay}, spec=one.object["spec"], status=theirs)
        wait_until(
            lambda: "no link of this node has 172.30.1.77" in str(one.status().get("refused")), "it is told"
        )
        told = wait_until(
            lambda: [e for e in api.events.values() if e["involvedObject"]["name"] == "node-1"], "an Event"
        )
        assert "no link of this node has 172.30.1.77" in told[0]["message"]
        time.sleep(0.3)
        assert api.node("node-1")["metadata"]["annotations"] == underlay, "nobody begins a quarrel"
        # What was there goes on.
        assert_reaches(one.pods["a"], one.fd, "172.30.1.1", pod["IPv4"])
        api.put("Node", "node-1", metadata={"annotations": underlay}, **one.object)
        wait_until(
            lambda: api.node("node-1")["metadata"]["annotations"] != underlay, "it speaks for itself again"
        )
        one.wait_ready()
        assert_reaches(one.pods["a"], two.pods["b"], far["IPv4"], pod["IPv4"])


def test_an_uplink_that_vanishes_and_comes_back_is_built_upon_again(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        before = actual(one)
        with Rtnl(one.fd) as rt:
            rt.delete_link("eth0")
        wait_until(lambda: one.status()["failures"], "the loss is told")
        join(one, two)
        for node in (one, two):
            node.wait_ready()
        assert actual(one) == before
        assert_reaches(one.pods["near"], two.pods["far"], far["IPv6"], near["IPv6"])


def test_an_uplinks_address_that_comes_back_brings_the_routes_back(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, _two):
        one.add_pod("a")
        before = actual(one)
        address = ip_interface("172.30.1.1/24")
        with Rtnl(one.fd) as rt:
            rt.delete_address("eth0", address)
            assert actual(one) != before  # the kernel drops routes with this source
            rt.add_address("eth0", address)
        wait_until(lambda: actual(one) == before, "the routes are back")
        one.wait_ready()


def test_the_plugin_is_installed_when_the_node_is_ready(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["both"]) as (api, one, _two):
        api.delete("Node", "node-1")
        flags = ("--cni-bin-dir", str(tmp_path / "bin"), "--cni-conf-dir", str(tmp_path / "net.d"))
        one.start(*flags)
        wait_until(lambda: "no Node node-1" in str(one.status().get("blockers")), "it waits for its Node")
        assert not (tmp_path / "net.d").exists()
        api.put("Node", "node-1", **one.object)
        one.wait_ready()
        assert [p.name for p in (tmp_path / "net.d").iterdir()] == ["10-podlane.conflist"]
        wait_until(lambda: api.conditions("node-1"), "the Node is told that its network is there")
        unavailable = api.conditions("node-1")["NetworkUnavailable"]
        assert (unavailable["status"], unavailable["reason"]) == ("False", "PodlaneIsUp")


def test_the_uplinks_mtu_is_followed(tmp_path: Path) -> None:
    with running(tmp_path, "IPv4") as (_, one, _two):
        with Rtnl(one.fd) as rt:
            rt.set_mtu("eth0", 1400)
        wait_until(lambda: actual(one)[Table.LINKS]["plvxlan"].mtu_bytes == 1350, "the tunnel's MTU follows")


def test_the_window_answers_health_metrics_and_tables(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, _two):
        for path in ("/healthz", "/livez"):
            code, body = one.get(path)
            assert code == 200
            assert json.loads(body)["nodeEligible"]
        assert one.get("/readyz") == (200, b"ok\n")
        metrics = one.get("/metrics")[1].decode()
        assert "podlane_agent_ready 1\n" in metrics
        assert 'podlane_agent_table_rows{table="fdb"} 1\n' in metrics
        assert one.get("/nothing")[0] == 404
        assert b'"destination": "10.244.2.0/24"' in one.get("/tables")[1]
        assert set(one.status()["applied"]) >= {"Node", "Service", "EndpointSlice"}


def test_the_namespace_forwards_and_only_there(tmp_path: Path) -> None:
    with running(tmp_path) as (_, one, _two):
        assert netns.read_sysctl(one.fd, "net/ipv4/ip_forward") == "1"
        assert netns.read_sysctl(one.fd, "net/ipv6/conf/all/forwarding") == "1"
        assert netns.read_sysctl(one.fd, "net/ipv4/conf/all/rp_filter") != "1"


SERVICE_IP = {"IPv4": "10.96.0.77", "IPv6": "fd00:10:96::77"}


def put_service(api: FakeApi, endpoints: dict[str, list[str]], node: str) -> None:
    families = list(endpoints)
    api.put(
        "Service",
        "echo",
        metadata={"namespace": "default"},
        spec={
            "type": "ClusterIP",
            "clusterIP": SERVICE_IP[families[0]],
            "clusterIPs": [SERVICE_IP[f] for f in families],
            "ipFamilies": families,
            "ports": [{"port": 80, "protocol": "UDP", "targetPort": 9999}],
        },
    )
    for family, addresses in endpoints.items():
        api.put(
            "EndpointSlice",
            f"echo-{family.lower()}",
            metadata={"namespace": "default", "labels": {"kubernetes.io/service-name": "echo"}},
            addressType=family,
            endpoints=[
                {"addresses": [a], "conditions": {"ready": True}, "nodeName": node} for a in addresses
            ],
            ports=[{"name": "", "protocol": "UDP", "port": 9999}],
        )


def services_applied(node: TestNode) -> bool:
    status = node.status()
    return status.get("tables", {}).get("frontends", 0) >= 1 and not status["pending"]


@pytest.mark.parametrize("families", ["both", "IPv6"])
def test_a_service_of_a_pod_on_the_other_node(tmp_path: Path, families: str) -> None:
    with running(tmp_path, families) as (api, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        put_service(api, {f: [far[f]] for f in FAMILIES[families]}, "node-2")
        wait_until(lambda: services_applied(one) and services_applied(two), "the service is programmed")
        for family in FAMILIES[families]:
            with Echo(two.pods["far"], far[family]) as server:
                assert ask(one.pods["near"], SERVICE_IP[family], 80, server) == near[family]


@pytest.mark.parametrize(
    "command", ["delete table ip podlane", "flush map ip podlane frontends", "flush ruleset"]
)
def test_a_ruleset_changed_by_hand_is_repaired(tmp_path: Path, command: str) -> None:
    with running(tmp_path) as (api, one, two):
        near, far = one.add_pod("near"), two.add_pod("far")
        put_service(api, {f: [far[f]] for f in FAMILIES["both"]}, "node-2")
        wait_until(lambda: services_applied(one) and services_applied(two), "the service is programmed")

        def ruleset() -> bytes:
            return netns.inside(one.fd, lambda: subprocess.check_output(["nft", "-s", "list", "ruleset"]))

        before = ruleset()
        netns.inside(one.fd, lambda: subprocess.check_call(["nft", command]))
        wait_until(lambda: len(ruleset()) == len(before), "the rules are back")
        with Echo(two.pods["far"], far["IPv4"]) as server:
            assert ask(one.pods["near"], SERVICE_IP["IPv4"], 80, server) == near["IPv4"]
        # The repair is no news that asks for another repair.
        resyncs = wait_until(lambda: one.wait_ready()["resyncs"], "it has compared")
        time.sleep(0.3)
        assert one.status()["resyncs"] <= resyncs + 1


def test_a_second_start_with_services_finds_nothing_to_do(tmp_path: Path) -> None:
    with running(tmp_path) as (api, one, two):
        one.add_pod("near")
        far = two.add_pod("far")
        put_service(api, {f: [far[f]] for f in FAMILIES["both"]}, "node-2")
        wait_until(lambda: services_applied(one), "the service is programmed")
        one.stop(signal.SIGKILL)
        one.start()
        assert one.wait_ready()["operations"] == 0


def test_without_services_nothing_is_watched_for_them_and_no_flow_is_taken(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["both"]) as (_, one, _two):
        one.start("--services", "off", "--policy", "off")
        assert set(one.wait_ready()["applied"]) == {"Node", "ServiceCIDR"}
        listed = netns.inside(one.fd, lambda: subprocess.check_output(["nft", "list", "ruleset"]))
        assert b"hook postrouting" in listed  # what leaves the cluster: test_pod_masquerade.py
        assert b"nat hook prerouting" not in listed
