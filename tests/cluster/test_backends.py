"""Every way between nodes, in a whole lab: all of `check` passes, and the wire shows what it is."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

from tests.cluster.conftest import PODLANE, Lab, until

PODS = """
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: absent, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
"""


def pod_on(lab: Lab, node: str) -> str:
    (name,) = (p["metadata"]["name"] for p in lab.get("pods")["items"] if p["spec"]["nodeName"] == node)
    return str(name)


def stages(lab: Lab, source: str, target: str) -> list[str]:
    told = json.loads(lab.podlane("explain", "--lab", lab.name, source, target, "-o", "json").stdout)
    return [stage["stage"] for stage in told["stages"]]


def outer(lab: Lab, source: str, target: str) -> bool:
    """Whether a real packet was wrapped on its way."""
    shown = lab.podlane("trace", "--lab", lab.name, source, target, "-o", "json").stdout
    return '"outer": {' in shown or '"outer":{' in shown


def test_host_gw_reaches_every_pod_without_a_tunnel(lab: Lab) -> None:
    lab.up("--nodes", "3", "--set", "backend.type=host-gw", "-f", "-", input=PODS)
    lab.check()
    one, two = pod_on(lab, "node-1"), pod_on(lab, "node-2")
    assert not outer(lab, f"pod/{one}", f"pod/{two}:80")
    assert "encapsulation" not in stages(lab, f"pod/{one}", f"pod/{two}:80")
    assert "plvxlan" not in lab.node("node-1", "ip", "link").stdout
    link = lab.exec(one, "cat", "/sys/class/net/eth0/mtu").stdout
    assert link.strip() == "1500"


def test_a_flap_of_the_uplink_brings_the_routes_back(lab: Lab) -> None:
    lab.up("--nodes", "2", "--set", "backend.type=host-gw", "-f", "-", input=PODS)
    lab.node("node-1", "ip", "link", "set", "eth0", "down")
    until(lambda: "10.244.1.0/24" not in lab.node("node-1", "ip", "route").stdout)
    lab.node("node-1", "ip", "link", "set", "eth0", "up")
    for family, wanted in (("-4", "10.244.1.0/24"), ("-6", "fd00:10:244:1::/64")):
        until(lambda f=family, w=wanted: w in lab.node("node-1", "ip", f, "route").stdout)


def test_direct_routing_takes_the_tunnel_only_between_racks(lab: Lab) -> None:
    settings = ["--set", "backend.directRouting=true", "--set", "fabric.racks=2"]
    lab.up("--nodes", "3", *settings, "-f", "-", input=PODS)
    lab.check()
    one, near, far = (f"pod/{pod_on(lab, f'node-{i}')}" for i in (1, 3, 2))
    assert not outer(lab, one, f"{near}:80")
    assert outer(lab, one, f"{far}:80")
    assert "encapsulation" not in stages(lab, one, f"{near}:80")
    assert "encapsulation" in stages(lab, one, f"{far}:80")


def test_host_gw_between_racks_is_refused_by_name(lab: Lab) -> None:
    came_up = lab.up(
        "--nodes",
        "2",
        "--set",
        "backend.type=host-gw",
        "--set",
        "fabric.racks=2",
        "--timeout",
        "20s",
        check=False,
    )
    why = "node node-2: 172.30.2.12 is not on eth0's subnet (172.30.1.0/24"
    assert f"! node-1 refuses {why}" in came_up.stderr
    assert f"refused: {why}" in lab.podlane("status", lab.name).stdout


def bird_pid(lab: Lab, node: str) -> int:
    try:
        return int(Path(f"/run/podlane/labs/{lab.name}/nodes/{node}/bird/bird.pid").read_text())
    except (OSError, ValueError):
        return 0


def bgp_routes(lab: Lab, node: str) -> set[str]:
    """Prefixes that BGP brought to the node, of both families."""
    lists = [lab.node(node, "ip", f, "route", "show", "proto", "bird").stdout for f in ("-4", "-6")]
    return {line.split()[0] for each in lists for line in each.splitlines()}


def test_bgp_reaches_every_pod_across_racks_and_outlives_agents_and_speakers(lab: Lab) -> None:
    settings = ["backend.type=bgp", "fabric.racks=2", "bgp.password=kept", "bgp.advertise=ClusterIP"]
    lab.up("--nodes", "3", *(w for s in settings for w in ("--set", s)), "-f", "-", input=PODS)
    lab.check()
    one, two, three = (pod_on(lab, f"node-{i}") for i in (1, 2, 3))
    assert not outer(lab, f"pod/{one}", f"pod/{two}:80")
    told = lab.podlane("explain", "--lab", lab.name, f"pod/{one}", f"pod/{two}:80").stdout
    assert "by BGP" in told
    # The router has learnt where pods are: they are reached from beyond the cluster as they are.
    address = lab.get("pod", two)["status"]["podIP"]
    assert lab.outside("curl", "-s", "-m3", f"http://{address}/hostname").stdout == two
    # So it has the ClusterIPs, of both families, by way of any node.
    for service in lab.get("svc", "web")["spec"]["clusterIPs"]:
        host = f"[{service}]" if ":" in service else service
        url = f"http://{host}/hostname"
        until(lambda u=url: lab.outside("curl", "-s", "-m3", u).stdout in (one, two, three))

    # An agent that begins anew goes on with the speaker it finds.
    before, speaker = bgp_routes(lab, "node-1"), bird_pid(lab, "node-1")
    assert len(before) == 4
    agent = lab.running_pid("agent/node-1")
    os.kill(agent, signal.SIGKILL)
    until(lambda: lab.running_pid("agent/node-1") not in (0, agent))
    lab.check()
    assert (bgp_routes(lab, "node-1"), bird_pid(lab, "node-1")) == (before, speaker)

    # A speaker that dies is started again, and its routes never went.
    os.kill(speaker, signal.SIGKILL)
    assert bgp_routes(lab, "node-1") == before
    until(lambda: bird_pid(lab, "node-1") not in (0, speaker))
    until(lambda: lab.podlane("status", lab.name, check=False).returncode == 0)
    lab.check()

    # A peer that falls silent is withdrawn, by BFD, and comes back.
    silent = bird_pid(lab, "node-3")
    os.kill(silent, signal.SIGSTOP)
    until(lambda: len(bgp_routes(lab, "node-1")) == 2)
    os.kill(silent, signal.SIGCONT)
    until(lambda: bgp_routes(lab, "node-1") == before)
    address = lab.get("pod", three)["status"]["podIP"]
    assert lab.exec(one, "curl", "-s", "-m3", f"http://{address}/hostname").stdout == three


def test_a_route_reflector_brings_every_pod_without_a_mesh(lab: Lab) -> None:
    reflectors = 'bgp.routeReflectors={"kubernetes.io/hostname": "node-2"}'
    lab.up("--nodes", "3", "--set", "backend.type=bgp", "--set", reflectors, "-f", "-", input=PODS)
    lab.check()
    socket = f"/run/podlane/labs/{lab.name}/nodes/node-1/bird/bird.ctl"
    shown = lab.node("node-1", "birdc", "-s", socket, "show", "protocols", "all").stdout
    described = {line.split()[-1] for line in shown.splitlines() if "Description:" in line}
    assert described & {"node-2", "node-3"} == {"node-2"}
    assert (
        "10.244.2.0/24 via 172.30.1.13" in lab.node("node-1", "ip", "route", "show", "proto", "bird").stdout
    )


def wireguard_pid(lab: Lab, node: str) -> int:
    try:
        return int(Path(f"/run/podlane/labs/{lab.name}/nodes/{node}/wireguard/wireguard.pid").read_text())
    except (OSError, ValueError):
        return 0


def routes_of(lab: Lab, node: str, device: str) -> str:
    return lab.node(node, "ip", "route", "show", "dev", device, check=False).stdout


def on_the_wire(lab: Lab, node: str, expression: str, source: str, target: str) -> list[str]:
    """What tcpdump sees on the node's uplink while pod `source` asks pod `target`, once a family."""
    command = ["tcpdump", "-lnnvi", "eth0", "-c", "40", "--immediate-mode", expression]
    watcher = subprocess.Popen(
        [str(PODLANE), "node", "--lab", lab.name, node, "--", "timeout", "3", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watcher.stderr is not None
    while "listening on" not in watcher.stderr.readline():
        assert watcher.poll() is None
    for each in lab.get("pod", target)["status"]["podIPs"]:
        host = f"[{each['ip']}]" if ":" in each["ip"] else each["ip"]
        assert lab.exec(source, "curl", "-s", "-m3", f"http://{host}/hostname").stdout == target
    return watcher.communicate(timeout=20)[0].splitlines()


def test_wireguard_reaches_every_pod_across_racks_and_outlives_agents_and_processes(lab: Lab) -> None:
    secret = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    settings = ["backend.type=wireguard", "fabric.racks=2", f"wireguard.presharedKey={secret}"]
    lab.up("--nodes", "3", *(w for s in settings for w in ("--set", s)), "-f", "-", input=PODS)
    lab.check()
    one, two = pod_on(lab, "node-1"), pod_on(lab, "node-2")
    told = lab.podlane("explain", "--lab", lab.name, f"pod/{one}", f"pod/{two}:80").stdout
    assert "encrypted by WireGuard, 172.30.1.11 -> 172.30.2.12, UDP 51820; MTU 1440" in told
    assert lab.exec(one, "cat", "/sys/class/net/eth0/mtu").stdout.strip() == "1440"

    # Both families of pods in UDP between the nodes, and nothing of a pod beside it.
    pods = "net 10.244.0.0/16 or net fd00:10:244::/56"
    seen = on_the_wire(lab, "node-1", f"udp port 51820 or {pods}", one, two)
    assert any("172.30.1.11.51820 > 172.30.2.12.51820: UDP" in line for line in seen)
    assert not [line for line in seen if "10.244." in line or "fd00:10:244:" in line]

    # The private key stays on its node, for nobody else to read.
    key = Path(f"/var/lib/podlane/labs/{lab.name}/nodes/node-1/wireguard.key")
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text().strip() not in json.dumps(lab.get("nodes"))

    # An agent that begins anew goes on with the process it finds.
    process, agent = wireguard_pid(lab, "node-1"), lab.running_pid("agent/node-1")
    os.kill(agent, signal.SIGKILL)
    until(lambda: lab.running_pid("agent/node-1") not in (0, agent))
    lab.check()
    assert wireguard_pid(lab, "node-1") == process

    # A process that dies is started again, with its device, its peers and the routes.
    os.kill(process, signal.SIGKILL)
    until(lambda: wireguard_pid(lab, "node-1") not in (0, process))
    until(lambda: "10.244.1.0/24" in routes_of(lab, "node-1", "plwg"))
    lab.check()

    # A node that publishes no key is refused by name; the others go on.
    three = lab.running_pid("agent/node-3")
    os.kill(three, signal.SIGSTOP)
    try:
        lab.kubectl("annotate", "node", "node-3", "podlane.dev/wireguard-key-")
        why = "node node-3: no annotation podlane.dev/wireguard-key: its agent has published no key yet"
        until(lambda: why in lab.podlane("status", lab.name, check=False).stdout)
        (address,) = [a["ip"] for a in lab.get("pod", two)["status"]["podIPs"] if ":" not in a["ip"]]
        assert lab.exec(one, "curl", "-s", "-m3", f"http://{address}/hostname").stdout == two
    finally:
        os.kill(three, signal.SIGCONT)
    until(lambda: why not in lab.podlane("status", lab.name, check=False).stdout)


def test_ipip_reaches_every_pod_across_racks_and_goes_on_without_an_agent(lab: Lab) -> None:
    settings = ["backend.type=ipip", "fabric.racks=2", "backend.directRouting=true"]
    lab.up("--nodes", "3", *(w for s in settings for w in ("--set", s)), "-f", "-", input=PODS)
    lab.check()
    one, two, three = (pod_on(lab, f"node-{i}") for i in (1, 2, 3))
    assert outer(lab, f"pod/{one}", f"pod/{two}:80")
    assert not outer(lab, f"pod/{one}", f"pod/{three}:80")
    told = lab.podlane("explain", "--lab", lab.name, f"pod/{one}", f"pod/{two}:80").stdout
    assert "IP in IP (protocol 4), 172.30.1.11 -> 172.30.2.12; MTU 1480" in told

    # RFC 2003 and RFC 4213: the packet's TTL (63, it was forwarded once), Don't Fragment, a right checksum.
    seen = "\n".join(on_the_wire(lab, "node-1", "ip proto 4 or ip proto 41", one, two))
    for protocol, inner in (("IPIP (4)", "10.244.1."), ("IPv6 (41)", "fd00:10:244:1:")):
        assert re.search(rf"ttl 63, id \d+, offset 0, flags \[DF\], proto {re.escape(protocol)}", seen), seen
        assert inner in seen
    assert "172.30.1.11 > 172.30.2.12:" in seen
    assert "bad cksum" not in seen

    # Nothing of it needs the agent; one that begins anew finds everything as it should be.
    address = lab.get("pod", two)["status"]["podIP"]
    before = lab.node("node-1", "tc", "filter", "show", "dev", "eth0", "ingress").stdout
    assert "podlane_decap" in before
    agent = lab.running_pid("agent/node-1")
    os.kill(agent, signal.SIGKILL)
    assert lab.exec(one, "curl", "-s", "-m3", f"http://{address}/hostname").stdout == two
    until(lambda: lab.running_pid("agent/node-1") not in (0, agent))
    lab.check()
    assert lab.node("node-1", "tc", "filter", "show", "dev", "eth0", "ingress").stdout == before

    # The device taken away by hand comes back with programs and routes.
    lab.node("node-1", "ip", "link", "del", "plipip")
    until(lambda: "10.244.1.0/24" in routes_of(lab, "node-1", "plipip"))
    lab.check()


DENY = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: none}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
"""


def udp_pid(lab: Lab, node: str) -> int:
    try:
        return int(Path(f"/run/podlane/labs/{lab.name}/nodes/{node}/udp/udp.pid").read_text())
    except (OSError, ValueError):
        return 0


def test_udp_reaches_every_pod_across_racks_and_outlives_agents_and_proxies(lab: Lab) -> None:
    settings = ["backend.type=udp", "fabric.racks=2"]
    lab.up("--nodes", "3", *(w for s in settings for w in ("--set", s)), "-f", "-", input=PODS)
    lab.check()
    one, two = pod_on(lab, "node-1"), pod_on(lab, "node-2")
    assert outer(lab, f"pod/{one}", f"pod/{two}:80")
    told = lab.podlane("explain", "--lab", lab.name, f"pod/{one}", f"pod/{two}:80").stdout
    how = "a bare packet in a datagram, 172.30.1.11 -> 172.30.2.12, UDP 8285; MTU 1472"
    assert f"{how} (28 bytes more on the wire)" in told
    assert lab.exec(one, "cat", "/sys/class/net/eth0/mtu").stdout.strip() == "1472"
    seen = on_the_wire(lab, "node-1", "udp port 8285", one, two)
    assert any("172.30.1.11.8285 > 172.30.2.12.8285: UDP" in line for line in seen)

    # A dead agent stops no packet, and the next one goes on with the proxy it finds.
    proxy, agent = udp_pid(lab, "node-1"), lab.running_pid("agent/node-1")
    os.kill(agent, signal.SIGKILL)
    address = lab.get("pod", two)["status"]["podIP"]
    assert lab.exec(one, "curl", "-s", "-m3", f"http://{address}/hostname").stdout == two
    until(lambda: lab.running_pid("agent/node-1") not in (0, agent))
    lab.check()
    assert udp_pid(lab, "node-1") == proxy

    # A dead proxy leaves device and routes, and is started again; a device taken away comes back.
    os.kill(proxy, signal.SIGKILL)
    assert "10.244.1.0/24" in routes_of(lab, "node-1", "pludp")
    until(lambda: udp_pid(lab, "node-1") not in (0, proxy))
    until(lambda: lab.exec(one, "curl", "-s", "-m1", f"http://{address}/hostname", check=False).stdout == two)
    lab.node("node-1", "ip", "link", "del", "pludp")
    until(lambda: "10.244.1.0/24" in routes_of(lab, "node-1", "pludp"))
    lab.check()

    # What comes of another sender than a node is counted, and policy holds across it.
    socket = f"/run/podlane/labs/{lab.name}/nodes/node-1/agent.sock"
    ask = ["curl", "-s", "--unix-socket", socket, "http://agent/metrics"]
    lab.outside("python3", "-c", "import socket as s; s.socket(2, 2).sendto(b'x', ('172.30.1.11', 8285))")
    dropped = 'podlane_agent_udp_drops_total{reason="unknown_sender"} 1'
    until(lambda: dropped in subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    lab.kubectl("create", "-f", "-", input=DENY)
    until(lambda: not lab.exec(one, "curl", "-s", "-m1", f"http://{address}/hostname", check=False).stdout)
    lab.kubectl("delete", "networkpolicy", "none")
    until(lambda: lab.exec(one, "curl", "-s", "-m1", f"http://{address}/hostname", check=False).stdout == two)
