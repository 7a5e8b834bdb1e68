"""A firewall that drops what is forwarded: pods' packets are lost, it is said, and the remedy helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.netns.agent_nodes import FAMILIES, TestNode, two_nodes, wait_until
from tests.netns.test_cleanup import run
from tests.netns.test_policy_agent import reaches

DROPS = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
COMMIT
"""


def told(node: TestNode) -> dict[str, str]:
    return {each["kind"]: f"{each['what']}: {each['remedy']}" for each in node.status().get("conflicts", [])}


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_forward_chain_that_drops_is_told_and_the_remedy_helps(tmp_path: Path, variant: str) -> None:
    with two_nodes(tmp_path, FAMILIES["both"]) as (api, one, two):
        for node in (one, two):
            node.start()
            node.wait_ready()
        one.add_pod("near")
        far = two.add_pod("far")
        assert reaches(one.pods["near"], two.pods["far"], far["IPv4"])
        wait_until(lambda: 'kind="ForwardDropped"} 0' in one.get("/metrics")[1].decode(), "it is counted")
        for program in ("iptables", "ip6tables"):
            run(one.fd, f"{program}-{variant}-restore", stdin=DROPS)
        assert not reaches(one.pods["near"], two.pods["far"], far["IPv4"])
        assert not reaches(one.pods["near"], two.pods["far"], far["IPv6"])
        if variant == "legacy":  # the kernel tells nobody of these: they are looked for now and then
            one.stop()
            one.start()
        sentence = wait_until(lambda: told(one).get("ForwardDropped"), "it is told")
        assert "others.acceptForward: true" in sentence
        assert "(Docker)" in sentence
        said = wait_until(lambda: api.conditions(one.name).get("podlane.dev/Conflict"), "the Node says so")
        wait_until(lambda: api.conditions(one.name)["podlane.dev/Conflict"]["status"] == "True", "and why")
        assert said["reason"] in ("ForwardDropped", "None")
        assert 'kind="ForwardDropped"} 2' in one.get("/metrics")[1].decode()
        # The remedy.
        one.stop()
        config = one.dir / "config.yaml"
        settings = json.loads(config.read_text())
        config.write_text(json.dumps(settings | {"others": {"acceptForward": True}}))
        one.start()
        one.wait_ready()
        for family in FAMILIES["both"]:
            wait_until(lambda f=family: reaches(one.pods["near"], two.pods["far"], far[f]), "it passes again")
        wait_until(lambda: not told(one), "it is no conflict any more")
        if variant == "nft":  # the firewall is set up anew: ours are put back
            run(one.fd, "iptables-nft-restore", stdin=DROPS)
            wait_until(lambda: reaches(one.pods["near"], two.pods["far"], far["IPv4"]), "they are back")
        # Without the key the rules go, and nothing else.
        one.stop()
        config.write_text(json.dumps(settings))
        one.start()
        one.wait_ready()
        wait_until(lambda: told(one), "it is told again")
        for program in ("iptables", "ip6tables"):
            left = run(one.fd, f"{program}-{variant}-save")
            assert "podlane" not in left
            assert "-A FORWARD -j DOCKER-USER" in left


def test_a_foreign_nftables_chain_that_drops_is_told(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"]) as (_api, one, two):
        for node in (one, two):
            node.start()
            node.wait_ready()
        one.add_pod("near")
        far = two.add_pod("far")
        wait_until(lambda: "conflicts" in one.status() and not told(one), "nothing is wrong")
        chain = "add chain inet wall fw { type filter hook forward priority 10; policy drop; }"
        rules = f"add table inet wall\n{chain}\n"
        run(one.fd, "nft", "-f", "-", stdin=rules)
        assert not reaches(one.pods["near"], two.pods["far"], far["IPv4"])
        sentence = wait_until(lambda: told(one).get("ForwardDropped"), "it is told")
        assert "nftables table inet wall" in sentence
        assert "chain fw" in sentence
        run(one.fd, "nft", "delete", "table", "inet", "wall")
        wait_until(lambda: not told(one), "it is over")
        assert reaches(one.pods["near"], two.pods["far"], far["IPv4"])
