"""The agent without an API, driven by its executables as container runtimes and cnitool do."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from click.testing import CliRunner

from podlane.cli.agent import command
from podlane.cni import plugins
from podlane.errors import ConfigError, UsageError
from podlane.kernel.nft import host_ports
from podlane.kernel.nft.elements import Elements
from podlane.kernel.rtnl import Rtnl
from podlane.lab import agents
from podlane.model.addresses import Family
from tests.monitoring import lint, parse
from tests.netns import packets
from tests.netns.agent_nodes import wait_until
from tests.netns.standalone import REFERENCE, Caller, Refusal, Standalone

REQUESTS = "podlane_agent_cni_requests_total"


def config(where: Path, kind: str = "bridge", **changes):
    return {
        "cniVersion": "1.0.0",
        "name": "mynet",
        "type": kind,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.244.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(where / "networks"),
        },
        **({"bridge": "cni0", "isGateway": True} if kind == "bridge" else {}),
        **changes,
    }


def veths(node: int) -> list[str]:
    with Rtnl(node) as rt:
        return [link.name for link in rt.links() if link.kind == "veth"]


def test_requests_are_counted(namespaces, tmp_path):
    with Standalone(namespaces(), tmp_path) as agent:
        with pytest.raises(Refusal):
            agent.caller.call("ADD", "c", None, config(tmp_path))
        text = agents.fetch(tmp_path / "run" / "agent.sock", "/metrics").decode()
        lint(text)
        found = {tuple(s.labels.values()): s.value for s in parse(text)[REQUESTS].samples}
        assert found["STATUS", "0"] >= 1
        assert found["ADD", "4"] == 1
        assert parse(text)["process_resident_memory_bytes"].samples[0].value > 2**20


def test_everything_is_made_and_nothing_of_others_replaced(namespaces, tmp_path):
    foreign = tmp_path / "opt" / "bin" / "bridge"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("#!/bin/sh\n")
    with Standalone(namespaces(), tmp_path) as agent:
        assert foreign.read_text() == "#!/bin/sh\n"
        assert list(agent.conf.iterdir()) == []  # made, and without a conflist
        names = {path.name for path in agent.bin.iterdir()}
        assert names >= {"podlane", *plugins.load()}
        assert stat.S_IMODE((tmp_path / "run" / "cni.sock").stat().st_mode) == 0o600


def test_the_tutorials_network_through_its_executables(namespaces, tmp_path):
    node, pods = namespaces(), {name: namespaces() for name in ("a", "b")}
    with Rtnl(node) as rt:
        rt.set_up("lo")
    with Standalone(node, tmp_path) as agent:
        call = agent.caller.call
        first = config(tmp_path, cniVersion="0.2.0", ipMasq=True)
        lo = {"cniVersion": "0.2.0", "name": "lo", "type": "loopback"}
        held = {}
        for name, pod in pods.items():
            assert call("ADD", name, pod, lo, ifname="lo")["ip4"]["ip"] == "127.0.0.1/8"
            held[name] = ip_interface(call("ADD", name, pod, first)["ip4"]["ip"]).ip
        assert packets.tcp(pods["a"], pods["b"], held["b"]) == held["a"]
        agent.kill()
        assert packets.udp(pods["b"], pods["a"], held["a"]) == held["b"]
        assert call("DEL", "a", pods["a"], first) == {}  # kept for the next agent
        with pytest.raises(Refusal) as refused:
            call("ADD", "c", pods["a"], first)
        assert refused.value.code == 11
        agent.start()
        wait_until(lambda: len(veths(node)) == 1, "the DEL that was kept is done")
        call("DEL", "b", pods["b"], first)
        assert veths(node) == []
        assert sorted(p.name for p in (tmp_path / "networks" / "mynet").iterdir()) == [
            "last_reserved_ip.0",
            "lock",
        ]


def test_our_own_type_without_an_api(namespaces, tmp_path):
    node, outside, pods = namespaces(), namespaces(), {name: namespaces() for name in ("a", "b")}
    with Rtnl(node) as rt:
        rt.set_up("lo")
        rt.create_veth("eth0", "eth0", peer_netns=outside, up=True, peer_up=True)
        rt.add_address("eth0", ip_interface("192.0.2.1/24"))
        rt.add_address("eth0", ip_interface("2001:db8::1/64"))
    with Rtnl(outside) as rt:
        rt.add_address("eth0", ip_interface("192.0.2.9/24"))
        rt.add_address("eth0", ip_interface("2001:db8::9/64"))
    whole = {"cniVersion": "1.0.0", "name": "own", "type": "podlane"}
    flags = ["--pod-cidr=10.244.1.0/24", "--pod-cidr=fd00:10:244:1::/64", "--host-local-dir="]
    with Standalone(node, tmp_path, *flags) as agent:
        held = {}
        for name, pod in pods.items():
            result = agent.caller.call("ADD", name, pod, whole)
            held[name] = [ip_interface(ip["address"]).ip for ip in result["ips"]]
        for there, back in zip(held["b"], held["a"], strict=True):
            assert packets.tcp(pods["a"], pods["b"], there) == back
            assert packets.udp(node, pods["b"], there)
        # beyond the CIDRs under the node's address, which knows the way back
        assert packets.tcp(pods["a"], outside, ip_address("192.0.2.9")) == ip_address("192.0.2.1")
        assert packets.tcp(pods["a"], outside, ip_address("2001:db8::9")) == ip_address("2001:db8::1")
        agent.kill()
        assert packets.tcp(pods["a"], pods["b"], held["b"][0]) == held["a"][0]
        agent.start()
        assert packets.tcp(pods["b"], pods["a"], held["a"][1]) == held["b"][1]
        for name, pod in pods.items():
            agent.caller.call("DEL", name, pod, whole)
        with Rtnl(node) as rt:
            assert [link.name for link in rt.links() if link.name.startswith("pl")] == []
            assert rt.routes(protocol=85) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--standalone", "--pod-cidr=x"], "'x'"),
        (["--standalone", "--pod-cidr=10.0.0.0/24", "--pod-cidr=10.1.0.0/24"], "one a family"),
        (["--pod-cidr=10.0.0.0/24"], "goes with --standalone"),
    ],
)
def test_pod_cidrs_that_cannot_be(tmp_path, flags, says):
    done = CliRunner().invoke(command, ["--node-name=n", f"--state-dir={tmp_path}", *flags])
    assert isinstance(done.exception, ConfigError | UsageError)
    assert says in str(done.exception)


def test_adds_at_once_with_an_agent_killed_between_share_no_address(namespaces, tmp_path):
    node, pods = namespaces(), [namespaces() for _ in range(12)]
    with Standalone(node, tmp_path) as agent:
        text = json.dumps(config(tmp_path)).encode()

        def add(place: int) -> tuple[int, dict]:
            environment = {"CNI_CONTAINERID": f"c{place}", "CNI_IFNAME": "eth0"}
            netns = f"/proc/{os.getpid()}/fd/{pods[place]}"
            status, stdout = agent.caller.raw("ADD", "bridge", text, CNI_NETNS=netns, **environment)
            return status, json.loads(stdout)

        with ThreadPoolExecutor(6) as threads:
            running = [threads.submit(add, place) for place in range(12)]
            running[2].result()
            agent.kill()
            answers = [each.result() for each in running]
        assert {status for status, _ in answers} == {0, 1}
        assert {answer["code"] for status, answer in answers if status} == {11}
        agent.start()
        # What was not answered for is gone, or whole: a runtime asks again, and has all of them then.
        answers = [add(place) for place in range(12)]
        held = [answer["ips"][0]["address"] for status, answer in answers if not status]
        assert len(held) == len(set(held)) == 12
        assert len(veths(node)) == 12
        leases = {p.name for p in (tmp_path / "networks" / "mynet").iterdir()} - {
            "lock",
            "last_reserved_ip.0",
        }
        assert leases == {address.partition("/")[0] for address in held}
        for pod, address in zip(pods[1:], held[1:], strict=True):
            packets.udp(pods[0], pod, ip_interface(address).ip)


def test_an_answered_del_owes_nothing_when_the_agent_is_killed_then(namespaces, tmp_path):
    """It is answered while the kernel still frees the links: all that anybody could find is gone by then."""
    node, pods = namespaces(), [namespaces() for _ in range(10)]
    main = config(tmp_path)
    networks = tmp_path / "networks" / "mynet"

    def chain(verb: str, place: int) -> str:
        ports = [{"hostPort": 8000 + place, "containerPort": 80, "protocol": "tcp"}]
        mapped = {"cniVersion": "1.0.0", "name": "mynet", "type": "portmap"}
        mapped["runtimeConfig"] = {"portMappings": ports}
        call, container = agent.caller.call, f"c{place}"
        if verb == "ADD":
            result = call("ADD", container, pods[place], main)
            return call("ADD", container, pods[place], mapped | {"prevResult": result})["ips"][0]["address"]
        call("DEL", container, pods[place], mapped)
        call("DEL", container, pods[place], main)
        return ""

    def left() -> list[object]:
        found: list[object] = veths(node)
        for pod in pods:
            with Rtnl(pod) as rt:
                found += [link.name for link in rt.links() if link.name != "lo"]
        with contextlib.closing(Elements(host_ports.TABLE, node)) as elements:
            found += elements.read(Family.IPV4, host_ports.ANY)
        return found + [p.name for p in networks.iterdir() if p.name[0] == "1"]

    with Standalone(node, tmp_path) as agent, ThreadPoolExecutor(10) as threads:
        before = set(threads.map(lambda place: chain("ADD", place), range(10)))
        assert len(before) == 10
        assert len(left()) == 40
        list(threads.map(lambda place: chain("DEL", place), range(10)))
        agent.kill()
        assert left() == []
        agent.start()
        assert left() == []
        after = set(threads.map(lambda place: chain("ADD", place), range(10)))
        assert len(after) == 10
        # One more is killed at the moment it is answered for one, and begun for the others.
        running = [threads.submit(chain, "DEL", place) for place in range(10)]
        running[0].result()
        agent.kill()
        for each in running:
            each.result()  # the spool answers for those that had no agent
        agent.start()
        wait_until(lambda: left() == [], "what was kept is done")


@pytest.fixture
def reference() -> Path:
    if not (REFERENCE / "bridge").exists():
        pytest.skip("the reference plugins are not installed (apt-get install containernetworking-plugins)")
    return REFERENCE


def same_shape(result):
    """What does not differ from run to run."""
    shown = json.loads(json.dumps(result))
    for interface in shown.get("interfaces", ()):
        interface["mac"] = bool(interface.get("mac"))
        if "sandbox" not in interface and interface["name"].startswith("veth"):
            interface["name"] = "veth"
        if "sandbox" in interface:
            interface["sandbox"] = True
    return shown


DUAL = {"ranges": [[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]}
COMPARED = {
    "bridge": {},
    "bridge, default gateway": {"isDefaultGateway": True, "ipam": {"routes": []}},
    "bridge, 0.3.1": {"cniVersion": "0.3.1"},
    "bridge, 0.2.0": {"cniVersion": "0.2.0"},
    "bridge, no gateway": {"isGateway": False},
    "bridge, both families": {"ipam": DUAL},
    "bridge, dns": {"dns": {"nameservers": ["10.0.0.53"], "domain": "x", "search": ["y"], "options": ["z"]}},
    "bridge, a route by a gateway": {"ipam": {"routes": [{"dst": "10.1.0.0/16", "gw": "10.244.0.9"}]}},
    "bridge, an address asked for": {"runtimeConfig": {"ips": ["10.244.7.7"]}, "capabilities": {"ips": True}},
    "ptp": {"type": "ptp"},
    "ptp, both families": {"type": "ptp", "ipam": DUAL},
    "loopback": {"type": "loopback"},
    "host-local": {"type": "host-local"},
    "host-local, both families": {"type": "host-local", "ipam": DUAL},
    "static": {
        "type": "static",
        "ipam": {"type": "static", "addresses": [{"address": "10.5.0.5/24", "gateway": "10.5.0.1"}]},
    },
}


@pytest.mark.parametrize("case", COMPARED)
def test_results_are_the_reference_plugins(namespaces, tmp_path, reference, case):
    changes = dict(COMPARED[case])
    node, other = namespaces(), namespaces()
    answers, files = [], []
    with Standalone(node, tmp_path) as agent:
        for caller, where in ((agent.caller, "ours"), (Caller(other, reference), "theirs")):
            whole = config(tmp_path / where, changes.get("type", "bridge"))
            whole |= {k: v for k, v in changes.items() if k != "ipam"}
            whole["ipam"] = whole["ipam"] | changes.get("ipam", {})
            if whole["type"] == "loopback":
                del whole["ipam"]
            pod, ifname = namespaces(), "lo" if whole["type"] == "loopback" else "eth0"
            result = caller.call("ADD", "c1", pod, whole, ifname)
            answers.append(same_shape(result))
            if whole["cniVersion"] >= "0.4.0" and whole["type"] not in ("host-local", "static"):
                caller.call("CHECK", "c1", pod, whole | {"prevResult": result}, ifname)
            leases = tmp_path / where / "networks" / "mynet"
            held = [p for p in leases.iterdir() if p.name != "lock"] if leases.exists() else []
            files.append({p.name: p.read_bytes() for p in held})
            caller.call("DEL", "c1", pod, whole, ifname)
    assert answers[0] == answers[1]
    assert files[0] == files[1]


def test_leases_pass_between_the_reference_and_us(namespaces, tmp_path, reference):
    """A node that changes over keeps its pods' addresses, both ways."""
    node, pods = namespaces(), [namespaces() for _ in range(4)]
    whole = config(tmp_path)
    theirs = Caller(node, reference)
    theirs.call("ADD", "c0", pods[0], whole)
    with Standalone(node, tmp_path) as agent:
        result = agent.caller.call("ADD", "c1", pods[1], whole)
        assert result["ips"][0]["address"] == "10.244.0.3/16"
        packets.udp(pods[0], pods[1], ip_address("10.244.0.3"))
        result = theirs.call("ADD", "c2", pods[2], whole)
        assert result["ips"][0]["address"] == "10.244.0.4/16"
        agent.caller.call("DEL", "c0", pods[0], whole)
        theirs.call("DEL", "c1", pods[1], whole)
        leases = tmp_path / "networks" / "mynet"
        assert {p.name for p in leases.iterdir()} == {"10.244.0.4", "lock", "last_reserved_ip.0"}
        with Rtnl(pods[0]) as rt:
            assert rt.find_link("eth0") is None


def test_their_main_plugin_with_our_addresses_and_ours_with_their(namespaces, tmp_path, reference):
    node, pod = namespaces(), namespaces()
    with Standalone(node, tmp_path) as agent:
        (tmp_path / "theirs").mkdir()
        (tmp_path / "theirs" / "bridge").symlink_to(reference / "bridge")
        mixed = Caller(node, f"{tmp_path / 'theirs'}:{agent.bin}")
        whole = config(tmp_path)
        assert mixed.call("ADD", "c1", pod, whole)["ips"][0]["address"] == "10.244.0.2/16"
        assert (tmp_path / "networks" / "mynet" / "10.244.0.2").read_bytes() == b"c1\r\neth0"
        mixed.call("DEL", "c1", pod, whole)
        assert not (tmp_path / "networks" / "mynet" / "10.244.0.2").exists()
        (tmp_path / "theirs" / "elsewhere").symlink_to(reference / "host-local")
        ours = Caller(node, f"{agent.bin}:{tmp_path / 'theirs'}")
        whole["ipam"] = whole["ipam"] | {"type": "elsewhere"}
        assert ours.call("ADD", "c2", pod, whole)["ips"][0]["address"] == "10.244.0.3/16"
        ours.call("DEL", "c2", pod, whole)
        assert not (tmp_path / "networks" / "mynet" / "10.244.0.3").exists()
        whole["ipam"] = whole["ipam"] | {"type": "nowhere"}
        with pytest.raises(Refusal, match="none of ours, and CNI_PATH"):
            ours.call("ADD", "c3", pod, whole)
        assert veths(node) == []
