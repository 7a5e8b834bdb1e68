"""The speaker beside other routers: FRR without addresses, GoBGP with a password, communities and rules."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from podlane.compile.bgp import SPEAKER
from podlane.compile.tables import BgpPeer, BgpSpeaker, Table
from podlane.engines.bird.driver import BirdDriver
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family
from podlane.model.bgp import Action, BgpRule

FOUR, SIX = ip_address("172.30.0.1"), ip_address("fd00:172::1")
PODS = (ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64"))
SERVICE = ip_network("10.96.0.10/32")
POD = ("10.244.1.5", "fd00:10:244:1::5")
FAR = ("198.51.100.7", "2001:db8:7::7")

ZEBRA = """
interface eth0
 no ipv6 nd suppress-ra
 ipv6 nd ra-interval msec 500
"""
BGPD = f"""
router bgp 64511
 bgp router-id 192.0.2.1
 no bgp ebgp-requires-policy
 neighbor eth0 interface remote-as external
 neighbor eth0 timers connect 1
 address-family ipv4 unicast
  network {FAR[0]}/32
  neighbor eth0 activate
 address-family ipv6 unicast
  network {FAR[1]}/128
  neighbor eth0 activate
"""
GOBGPD = f"""
[global.config]
  as = 64600
  router-id = "192.0.2.2"
[[neighbors]]
  [neighbors.config]
    neighbor-address = "{FOUR}"
    peer-as = 64512
    auth-password = "a secret"
  [neighbors.timers.config]
    connect-retry = 1
    idle-hold-time-after-reset = 1
"""


class Site:
    """A node and a router, one link between them. The node has a pod's addresses, the router far ones."""

    def __init__(self, make: Callable[[], int], where: Path) -> None:
        self.node, self.router, self.where = make(), make(), where
        for fd in (self.node, self.router):
            for kind in ("all", "default"):
                netns.write_sysctl(fd, f"net/ipv6/conf/{kind}/accept_dad", 0)
                netns.write_sysctl(fd, f"net/ipv6/conf/{kind}/forwarding", 1)
            netns.write_sysctl(fd, "net/ipv4/ip_forward", 1)
        with Rtnl(self.node) as node, Rtnl(self.router) as router:
            node.create_veth("eth0", "eth0", peer_netns=self.router, up=True, peer_up=True)
            for rt, texts in ((node, POD), (router, FAR)):
                rt.set_up("lo")
                for text in texts:
                    rt.add_address("lo", ip_interface(text))

    def number(self) -> None:
        with Rtnl(self.node) as node, Rtnl(self.router) as router:
            for rt, last in ((node, "1"), (router, "2")):
                rt.add_address("eth0", ip_interface(f"172.30.0.{last}/24"))
                rt.add_address("eth0", ip_interface(f"fd00:172::{last}/64"))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """On the router."""
        return subprocess.run(
            command, capture_output=True, text=True, check=False, preexec_fn=lambda: netns.setns(self.router)
        )

    @contextlib.contextmanager
    def daemon(self, *command: str) -> Iterator[None]:
        with self.where.joinpath(f"{Path(command[0]).name}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=lambda: netns.setns(self.router)
            )
        try:
            yield
        finally:
            process.terminate()
            process.wait()

    @contextlib.contextmanager
    def speaker(self, peer: BgpPeer, **changes: Any) -> Iterator[BirdDriver]:
        sources = changes.pop("sources", (FOUR, SIX))
        row = BgpSpeaker("172.30.0.1", 64512, "eth0", sources, PODS, PODS, False, 0, **changes)
        family = Family.IPV4 if peer.address is not None else Family.IPV6
        with netns.entered(self.node):
            driver = BirdDriver(self.where / "bird")
            desired = {
                Table.SPEAKER: {SPEAKER: row},
                Table.BGP_PEERS: {("router", family): peer},
                Table.ORIGINATED: {p: p for p in (*PODS, SERVICE)},
                Table.LEARNT: {},
            }
            driver.resync(desired)
            try:
                yield driver
            finally:
                driver.resync({})
                driver.close()


@pytest.fixture
def site(namespaces: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(namespaces, tmp_path_factory.mktemp("b"))


def until(condition: Callable[[], Any], timeout_s: float = 40.0) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end_s, "it did not come to be"
        time.sleep(0.1)
    return found


def test_frr_finds_the_node_without_addresses_and_both_families_pass(site: Site) -> None:
    router = BgpPeer(None, 64511, "", on_link=True, node=False, interface="eth0")
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frr-")))
        shutil.chown(where, "frr", "frr")  # its daemons leave root's rights as they start
        for name, text in (("zebra", ZEBRA), ("bgpd", BGPD)):
            (where / f"{name}.conf").write_text(text)
            files = ("-f", str(where / f"{name}.conf"), "-i", str(where / f"{name}.pid"))
            sockets = ("-z", str(where / "zserv"), "--vty_socket", str(where), "-P", "0")
            stack.enter_context(site.daemon(f"/usr/lib/frr/{name}", "--log", "stdout", *files, *sockets))
        driver = stack.enter_context(site.speaker(router, sources=(ip_address(POD[0]), ip_address(POD[1]))))
        for pod, far in zip(POD, FAR, strict=True):
            until(lambda pod=pod, far=far: site.run("ping", "-c1", "-W1", "-I", far, pod).returncode == 0)
        assert driver.sessions() == {("router", Family.IPV6): (False, True)}
        with Rtnl(site.node) as rt:
            assert {str(r.destination) for r in rt.routes(protocol=12)} == {f"{FAR[0]}/32", f"{FAR[1]}/128"}


def test_gobgp_with_a_password_is_told_communities_and_obeyed_within_the_rules(site: Site) -> None:
    site.number()
    (site.where / "gobgpd.toml").write_text(GOBGPD)
    router = BgpPeer(
        ip_address("172.30.0.2"),
        64600,
        "a secret",
        on_link=True,
        node=False,
        import_rules=(
            BgpRule(action=Action.REJECT, community="64600:66"),
            BgpRule(action=Action.ACCEPT, prefix="203.0.0.0/16", max_length=24),
            BgpRule(action=Action.REJECT),
        ),
        export_rules=(BgpRule(action=Action.REJECT, prefix="10.96.0.0/12", min_length=32),),
        prepend=2,
    )
    communities = {"pod_communities": ("64512:100", "64512:1:2")}
    with (
        site.daemon("/usr/bin/gobgpd", "-f", str(site.where / "gobgpd.toml")),
        contextlib.ExitStack() as stack,
    ):
        stack.enter_context(site.speaker(router, **communities))

        def told() -> Any:
            answer = site.run("gobgp", "neighbor", str(FOUR), "adj-in", "-j").stdout
            routes = json.loads(answer) if answer.startswith("{") else {}
            return routes if "error" not in routes else None

        routes = until(told)
        assert set(routes) == {str(PODS[0])}  # the rule keeps the service's address back
        attributes = {a["type"]: a for a in routes[str(PODS[0])][0]["attrs"]}
        assert attributes[2]["as_paths"][0]["asns"] == [64512] * 3
        assert attributes[8]["communities"] == [64512 << 16 | 100]
        assert attributes[32]["value"] == [{"ASN": 64512, "LocalData1": 1, "LocalData2": 2}]

        for prefix, community in (
            ("203.0.113.0/24", "64600:1"),
            ("203.0.114.0/24", "64600:66"),  # refused by its community
            ("203.0.115.128/25", "64600:1"),  # too long
            ("10.244.1.0/25", "64600:1"),  # this node's own
        ):
            done = site.run("gobgp", "global", "rib", "add", prefix, "community", community)
            assert done.returncode == 0, done.stderr
        with Rtnl(site.node) as rt:
            learnt = until(lambda: [str(r.destination) for r in rt.routes(protocol=12)])
        assert learnt == ["203.0.113.0/24"]
