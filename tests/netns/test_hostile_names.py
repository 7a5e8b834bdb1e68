"""Names, labels and annotations that no API server would let pass: to a node they are words, and no more."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from podlane.kernel import netns
from tests.netns.agent_nodes import FAMILIES, TestNode, two_nodes, wait_until
from tests.netns.test_agent import SERVICE_IP
from tests.netns.test_policy_agent import add, reaches

HOSTILE = [
    "a\n}\ntable ip evil { chain x { } }\n",
    'b" ; flush ruleset ; "',
    "c$(touch /tmp/podlane-hostile)`touch /tmp/podlane-hostile`",
    "d'; rm -rf /nowhere; #",
    "e\\",
    "../../../../f",
    "ü" * 253,
    "g" * 253,
    "🐙\u202e\x00\x1b[31m",
]
SESSIONS = ("bgp-peers", "learnt")  # nobody answers under those nodes' addresses
MARK = Path("/tmp/podlane-hostile")


def listed(node: TestNode) -> str:
    return netns.inside(node.fd, lambda: subprocess.check_output(["nft", "list", "ruleset"], text=True))


def test_what_is_named_like_a_command_is_a_name(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"], {"backend": {"type": "bgp"}}) as (api, one, two):
        api.put("Namespace", "default")
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.wait_ready()
        for place, name in enumerate(HOSTILE):
            labels = {"app": name, name[:60]: "x"}
            api.put("Namespace", name, metadata={"labels": labels, "annotations": {name: name}})
            api.put(
                "Pod",
                name,
                metadata={"namespace": "default", "labels": labels, "annotations": {name: name}},
                spec={
                    "nodeName": two.name,
                    "containers": [{"name": name, "ports": [{"name": name, "containerPort": 80}]}],
                },
                status={"phase": "Running", "podIPs": [{"ip": f"10.244.2.{100 + place}"}]},
            )
            rule = {
                "from": [
                    {"podSelector": {"matchLabels": labels}},
                    {"namespaceSelector": {"matchLabels": labels}},
                ],
                "ports": [{"port": name}, {"port": 80}],
            }
            api.put(
                "NetworkPolicy",
                name,
                metadata={"namespace": "default"},
                spec={"podSelector": {"matchLabels": {"guarded": "yes"}}, "ingress": [rule]},
            )
            api.put(
                "Service",
                name,
                metadata={"namespace": "default", "annotations": {name: name, "podlane.dev/balancing": name}},
                spec={
                    "type": "ClusterIP",
                    "clusterIP": f"10.96.1.{place + 1}",
                    "clusterIPs": [f"10.96.1.{place + 1}"],
                    "ipFamilies": ["IPv4"],
                    "ports": [{"name": name, "port": 80, "protocol": "TCP", "targetPort": name}],
                },
            )
            api.put(
                "Node",
                name,
                metadata={
                    "annotations": {
                        "podlane.dev/underlay": name,
                        "podlane.dev/wireguard-key": name,
                        name: name,
                    }
                },
                spec={"podCIDRs": [f"10.244.{100 + place}.0/24"]},
                status={"addresses": [{"type": "InternalIP", "address": f"172.30.1.{100 + place}"}]},
            )
        api.put(
            "Pod",
            "guarded",
            metadata={"namespace": "default", "labels": {"guarded": "yes"}},
            spec={"nodeName": one.name, "containers": [{"name": "c"}]},
            status={"phase": "Running"},
        )
        guarded = add(one, "guarded")
        one.add_pod("client")
        policies = wait_until(
            lambda: one.status().get("tables", {}).get("policies", 0) >= len(HOSTILE) and one.status(),
            "all are there",
        )
        wait_until(lambda: not one.status()["pending"], "all are programmed")
        assert not [each for each in one.status()["failures"] if each["table"] not in SESSIONS], policies[
            "failures"
        ]
        assert not reaches(one.pods["client"], one.pods["guarded"], guarded)
        text = listed(one)
        assert "evil" not in text.replace("evil { chain x", "")  # in a comment, if at all
        assert not MARK.exists()
        # What nft lists it reads again, and it is the same tables.
        heads = [line for line in text.splitlines() if line.startswith("table ")]
        assert all(line.split()[2].startswith("podlane") for line in heads), heads
        assert all(each.isprintable() or each in "\n\t" for each in text)
        # They come and go like any others.
        for name in HOSTILE:
            for kind in ("NetworkPolicy", "Service", "Pod", "Namespace", "Node"):
                api.delete(kind, name)
        wait_until(lambda: not one.status()["tables"]["policies"], "the policies are gone")
        wait_until(lambda: reaches(one.pods["client"], one.pods["guarded"], guarded), "it is open again")
        assert SERVICE_IP["IPv4"] not in json.dumps(one.status())


def test_sockets_and_state_are_roots_alone(tmp_path: Path) -> None:
    with two_nodes(tmp_path, FAMILIES["IPv4"]) as (_api, one, _two):
        one.start()
        one.wait_ready()
        for name in ("cni.sock", "agent.sock"):
            assert (one.dir / name).stat().st_mode & 0o777 == 0o600, name
        # In the sockets' directory already, so that it is the sockets that keep it out.
        nobody = (
            "import socket, os, sys; os.chdir(sys.argv[1]); os.setuid(65534); "
            "socket.socket(1).connect(sys.argv[2])"
        )
        for name in ("cni.sock", "agent.sock"):
            done = subprocess.run(
                ["python3", "-c", nobody, str(one.dir), name], capture_output=True, text=True, check=False
            )
            assert "PermissionError" in done.stderr, done.stderr
