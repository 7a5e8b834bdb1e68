"""One node with pods, a second node and a host outside, for sending real packets to services.

                     outside 198.51.100.10
                        |
    client .77 ---.     |
    local-1 .5 ----- [ node-1 172.30.1.1 ] ---- [ node-2 172.30.1.2 ] remote 10.244.2.5
    local-2 .6 ---'

Pods' links are routed, or ports of a bridge. Only node-1 has podlane's tables. Every pod, and node-2 for
`remote`, answers TCP and UDP with its name and the address it saw.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from ipaddress import ip_address
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

from podlane.kernel import cgroups, netns
from podlane.model.addresses import Family, Protocol
from podlane.model.config import LinkMode

GATEWAY_MAC, POD_MAC = "02:00:00:00:00:01", "02:00:00:00:01:{:02x}"
PORT = 8080
BRIDGE = "cni0"


class Plan(NamedTuple):
    """Addresses of one family."""

    node: str
    peer: str
    router: str  # node-1's address towards outside
    outside: str
    pods: str
    remote_pods: str
    services: str
    gateway: str

    def pod(self, number: int) -> str:
        return self.pods.format(number)

    @property
    def remote(self) -> str:
        return self.remote_pods.format(5)


PLANS = {
    Family.IPV4: Plan(
        "172.30.1.1",
        "172.30.1.2",
        "198.51.100.1",
        "198.51.100.10",
        "10.244.1.{}",
        "10.244.2.{}",
        "10.96.0.{}",
        "169.254.1.1",
    ),
    Family.IPV6: Plan(
        "fd00:172:30::1",
        "fd00:172:30::2",
        "2001:db8:100::1",
        "2001:db8:100::10",
        "fd00:10:244:1::{}",
        "fd00:10:244:2::{}",
        "fd00:10:96::{}",
        "fe80::1",
    ),
}
PODS = {"client": 77, "local-1": 5, "local-2": 6}


class Answer(NamedTuple):
    """Which server answered, and which client address it saw."""

    server: str
    client: str


class Refused(Exception):
    pass


class Silence(Exception):
    pass


class ServiceLab:
    def __init__(self, mode: LinkMode = LinkMode.ROUTED) -> None:
        self.mode = mode
        self.cgroup: Path | None = None  # what this node's clients are made in, if any
        self.fds: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._streams: set[socket.socket] = set()
        self._wake_in, self._wake_out = socket.socketpair()
        self._thread = threading.Thread(target=self._serve)

    # --- wiring ---

    def build(self) -> None:
        for name in ("node", "peer", "outside", *PODS):
            self.fds[name] = netns.new()
            self.ip(name, "link set lo up")
        node = self.fds["node"]
        for setting in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            netns.write_sysctl(node, setting, 1)
        for setting in ("net/ipv4/icmp_ratemask", "net/ipv6/icmp/ratelimit"):
            netns.write_sysctl(node, setting, 0)  # or some refusals of UDP would look like drops
        self._cable("eth0", "peer", "node", "peer", 24, 112)
        self._cable("ext0", "outside", "router", "outside", 24, 64)
        if self.mode is LinkMode.BRIDGE:
            self._bridge()
        for name, number in PODS.items():
            if self.mode is LinkMode.BRIDGE:
                self._port(name, number)
            else:
                self._pod(name, number)
        for plan in PLANS.values():
            bits = 128 if ":" in plan.node else 32
            self.ip("peer", f"addr add {plan.remote}/{bits} dev lo{_nodad(plan.remote)}")
            net, back = ("/64", "::") if bits == 128 else ("/24", ".0")
            self.ip("node", f"route add {_net(plan.remote_pods, back)}{net} via {plan.peer}")
            self.ip("peer", f"route add {_net(plan.pods, back)}{net} via {plan.node}")
            self.ip("peer", f"route add {plan.outside}/{bits} via {plan.node}")
            self.ip("peer", f"route add {plan.router}/{bits} via {plan.node}")
            self.ip("peer", f"route add default via {plan.node}")
            self.ip("outside", f"route add default via {plan.router}")
            # As a default route would: a service's own address is never reached by it.
            self.ip("node", f"route add default via {plan.outside}")
        for name in (*PODS, "peer"):
            shown = "remote" if name == "peer" else name
            for plan in PLANS.values():
                self.listen(name, plan.remote if name == "peer" else plan.pod(PODS[name]), shown)
        self._selector.register(self._wake_out, selectors.EVENT_READ, None)
        self._thread.start()
        self._settle()

    def _settle(self) -> None:
        """Links and neighbours take their time to come up, IPv6 the longest."""
        for plan in PLANS.values():
            for who, where in product(("client", "node", "outside"), (plan.remote, plan.pod(5), plan.pod(6))):
                for attempt in count(1):
                    try:
                        self.ask(who, where, PORT, timeout_s=0.5)
                        break
                    except (Silence, Refused, OSError):
                        if attempt == 20:
                            raise

    def _cable(self, link: str, far: str, near_field: str, far_field: str, four: int, six: int) -> None:
        path = f"/proc/{os.getpid()}/fd/{self.fds[far]}"
        self.ip("node", f"link add {link} type veth peer name eth0 netns {path}")
        for plan in PLANS.values():
            bits = six if ":" in plan.node else four
            near_address, far_address = getattr(plan, near_field), getattr(plan, far_field)
            self.ip("node", f"addr add {near_address}/{bits} dev {link}{_nodad(near_address)}")
            self.ip(far, f"addr add {far_address}/{bits} dev eth0{_nodad(far_address)}")
        self.ip("node", f"link set {link} up")
        self.ip(far, "link set eth0 up")

    def own_addresses(self, plan: Plan) -> set[str]:
        """The node's own, which those see whose client was masqueraded."""
        bridge = {plan.pod(1)} if self.mode is LinkMode.BRIDGE else set()
        return {plan.node, plan.router, *bridge}

    def _bridge(self) -> None:
        self.ip("node", f"link add {BRIDGE} type bridge")
        for setting in ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"):
            netns.write_sysctl(self.fds["node"], setting, 1)
        for plan in PLANS.values():
            where, bits = plan.pod(1), 64 if ":" in plan.node else 24
            self.ip("node", f"addr add {where}/{bits} dev {BRIDGE}{_nodad(where)}")
        self.ip("node", f"link set {BRIDGE} up")

    def _port(self, name: str, number: int) -> None:
        link, path = f"pl{number}", f"/proc/{os.getpid()}/fd/{self.fds[name]}"
        self.ip("node", f"link add {link} type veth peer name eth0 netns {path}")
        self.ip("node", f"link set {link} master {BRIDGE} up")
        self.ip("node", f"link set {link} type bridge_slave hairpin on")
        self.ip(name, "link set eth0 up")
        for plan in PLANS.values():
            where, bits = plan.pod(number), 64 if ":" in plan.node else 24
            self.ip(name, f"addr add {where}/{bits} dev eth0{_nodad(where)}")
            self.ip(name, f"route add default via {plan.pod(1)}")

    def _pod(self, name: str, number: int) -> None:
        link, mac = f"pl{number}", POD_MAC.format(number)
        path = f"/proc/{os.getpid()}/fd/{self.fds[name]}"
        self.ip(
            "node",
            f"link add {link} address {GATEWAY_MAC} type veth peer name eth0 address {mac} netns {path}",
        )
        self.ip("node", f"link set {link} up")
        self.ip(name, "link set eth0 up")
        for plan in PLANS.values():
            where = plan.pod(number)
            bits = 128 if ":" in where else 32
            self.ip(name, f"addr add {where}/{bits} dev eth0{_nodad(where)}")
            self.ip(name, f"neigh add {plan.gateway} lladdr {GATEWAY_MAC} dev eth0 nud permanent")
            self.ip(name, f"route add default via {plan.gateway} dev eth0 onlink")
            self.ip("node", f"route add {where}/{bits} dev {link}")
            self.ip("node", f"neigh add {where} lladdr {mac} dev {link} nud permanent")

    def ip(self, name: str, command: str) -> None:
        self.run(name, "ip", *command.split())

    def run(self, name: str, *command: str) -> str:
        with netns.entered(self.fds[name]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}: {' '.join(command)}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        self._wake_in.send(b"x")
        if self._thread.ident:
            self._thread.join()
        for each in (*self._sockets, *self._streams, self._wake_in, self._wake_out):
            each.close()
        self._selector.close()
        for fd in self.fds.values():
            os.close(fd)

    # --- servers ---

    def listen(self, name: str, where: str, shown: str, port: int = PORT) -> None:
        """shown: what it answers as its name; "" for the address it was asked at (TCP only)."""
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            each = self.socket(name, where, kind)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind((where, port))
            if kind == socket.SOCK_STREAM:
                each.listen(64)
            each.setblocking(False)
            self._sockets.append(each)
            self._selector.register(each, selectors.EVENT_READ, shown)

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._wake_out:
                    return
                assert isinstance(key.fileobj, socket.socket)
                try:
                    self._answer(key.fileobj, key.data)
                except OSError:  # a client that went away; its own side shows it
                    if key.fileobj in self._streams:
                        self._hang_up(key.fileobj)

    def _answer(self, each: socket.socket, shown: Any) -> None:
        if each in self._streams:
            data = each.recv(4096)
            if data:
                each.sendall(data)
            else:
                self._hang_up(each)
        elif each.type == socket.SOCK_DGRAM:
            _, client = each.recvfrom(4096)
            each.sendto(json.dumps([shown, client[0]]).encode(), client)
        else:
            stream, client = each.accept()
            shown = shown or stream.getsockname()[0]
            stream.sendall(json.dumps([shown, client[0]]).encode() + b"\n")
            stream.setblocking(False)
            self._streams.add(stream)
            self._selector.register(stream, selectors.EVENT_READ, shown)

    def _hang_up(self, stream: socket.socket) -> None:
        self._selector.unregister(stream)
        self._streams.discard(stream)
        stream.close()

    # --- clients ---

    def socket(self, name: str, where: str, kind: int) -> socket.socket:
        family = socket.AF_INET6 if ip_address(where).version == 6 else socket.AF_INET
        here = self.cgroup is not None and name in ("node", *PODS)
        with cgroups.joined(self.cgroup) if self.cgroup is not None and here else nullcontext():
            return netns.socket_in(self.fds[name], family, kind)

    def connect(
        self, name: str, where: str, port: int = 80, timeout_s: float = 3.0
    ) -> tuple[socket.socket, Answer]:
        """An open TCP connection that echoes, and who answered. Raises Refused, Silence."""
        each = self.socket(name, where, socket.SOCK_STREAM)
        try:
            each.settimeout(timeout_s)
            each.connect((where, port))
            line = b""
            while not line.endswith(b"\n"):
                line += each.recv(4096)
        except ConnectionRefusedError:
            each.close()
            raise Refused from None
        except TimeoutError:
            each.close()
            raise Silence from None
        return each, Answer(*json.loads(line))

    def ask(
        self, name: str, where: str, port: int = 80, protocol: Protocol = Protocol.TCP, timeout_s: float = 3.0
    ) -> Answer:
        """One new flow. Raises Refused, Silence."""
        if protocol is Protocol.TCP:
            stream, answer = self.connect(name, where, port, timeout_s)
            stream.close()
            return answer
        with self.socket(name, where, socket.SOCK_DGRAM) as each:
            each.settimeout(timeout_s)
            each.connect((where, port))
            try:
                # EPERM: dropped on the way out of this very node; an ICMP error may be waiting all the same.
                with suppress(PermissionError):
                    each.send(b"?")
                return Answer(*json.loads(each.recv(4096)))
            except ConnectionRefusedError:
                raise Refused from None
            except TimeoutError:
                raise Silence from None

    def answers(
        self, name: str, where: str, port: int = 80, protocol: Protocol = Protocol.TCP, flows: int = 30
    ) -> Counter[Answer]:
        return Counter(self.ask(name, where, port, protocol) for _ in range(flows))


def _nodad(where: str) -> str:
    return " nodad" if ":" in where else ""


def _net(pods: str, end: str) -> str:
    return pods.removesuffix("::{}").removesuffix(".{}") + end


@contextmanager
def service_lab(mode: LinkMode = LinkMode.ROUTED) -> Iterator[ServiceLab]:
    lab = ServiceLab(mode)
    try:
        lab.build()
        yield lab
    finally:
        lab.close()
