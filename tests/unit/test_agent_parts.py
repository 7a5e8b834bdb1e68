"""The agent's smaller parts: uplink, settings, notices, window, reports, options, memory."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from podlane.agent import http, main, monitor, options, report, sysctls, underlay
from podlane.agent.memory import Known, Memory
from podlane.agent.monitor import Notice
from podlane.agent.reconciler import Counts
from podlane.cli.agent import command
from podlane.compile.tables import FdbEntry, ListKey, Neighbour, Route, SetMember, SetName, Table, VxlanLink
from podlane.errors import ConfigError, KernelError
from podlane.kernel.driver import Failure
from podlane.kernel.netlink import Message
from podlane.kernel.rtnl import InterfaceAddress, KernelRoute, Link, links, neighbours, routes
from podlane.model.addresses import Family, Protocol
from podlane.model.config import DEFAULT


def link(index: int, name: str, **fields: Any) -> Link:
    return Link(index=index, name=name, kind="", mac="", mtu_bytes=fields.pop("mtu", 1500), up=True, **fields)


LINKS = [link(1, "lo", mtu=65536), link(2, "eth0"), link(3, "eth1", mtu=9000)]
HELD = [
    InterfaceAddress(1, ip_interface("127.0.0.1/8"), 0, 254),
    InterfaceAddress(2, ip_interface("192.0.2.1/24"), 0, 0),
    InterfaceAddress(3, ip_interface("172.30.1.11/24"), 0, 0),
    InterfaceAddress(3, ip_interface("fd00:172:30::11/112"), 0, 0),
]


def test_the_uplink_is_the_link_with_the_nodes_address() -> None:
    found = underlay.find([ip_address("172.30.1.11")], LINKS, HELD)
    assert found is not None
    assert (found.device, found.mtu_bytes) == ("eth1", 9000)
    assert found.addresses == (
        (ip_address("172.30.1.11"), ip_network("172.30.1.0/24")),
        (ip_address("fd00:172:30::11"), ip_network("fd00:172:30::/112")),
    )


def test_the_nodes_addresses_are_those_of_every_link_that_is_not_podlanes() -> None:
    more = [
        InterfaceAddress(2, ip_interface("fe80::1/64"), 0, 253),
        InterfaceAddress(4, ip_interface("10.244.1.0/32"), 0, 0),
    ]
    links = [*LINKS, link(4, "plvxlan")]
    found = underlay.find([ip_address("172.30.1.11")], links, [*HELD, *more], lambda name: name[:2] == "pl")
    assert found is not None
    assert list(map(str, found.node_addresses)) == ["172.30.1.11", "192.0.2.1", "fd00:172:30::11"]


def test_no_link_with_the_address_is_told_with_what_there_is() -> None:
    wanted = [ip_address("172.30.1.12")]
    assert underlay.find(wanted, LINKS, HELD) is None
    complaint = underlay.complaint(wanted, LINKS, HELD)
    assert complaint.startswith(
        "no link of this node has 172.30.1.12; there is eth0 192.0.2.1, eth1 172.30.1.11"
    )


# --- settings -------------------------------------------------------------------------------------


FRESH = {
    "net/ipv4/ip_forward": "0",
    "net/ipv6/conf/all/forwarding": "0",
    "net/ipv6/conf/eth0/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/eth0/rp_filter": "0",
    "net/netfilter/nf_conntrack_tcp_be_liberal": "0",
}


def wanted(families: list[Family] | None = None, **changes: str) -> list[tuple[str, str]]:
    state = FRESH | {name.replace("__", "/"): value for name, value in changes.items()}
    return [tuple(each) for each in sysctls.wanted(families or list(Family), "eth0", state.get)]


def test_a_fresh_namespace_is_made_to_forward() -> None:
    assert wanted() == [
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/ip_forward", "1"),
        ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ]


def test_what_is_right_already_is_not_written() -> None:
    right = {"net__ipv4__ip_forward": "1", "net__ipv6__conf__all__forwarding": "1"}
    assert wanted(**right, net__netfilter__nf_conntrack_tcp_be_liberal="1") == []


def test_a_family_that_is_not_used_is_not_touched() -> None:
    assert {name.split("/")[1] for name, _ in wanted([Family.IPV6])} == {"ipv6", "netfilter"}
    assert {name.split("/")[1] for name, _ in wanted([Family.IPV4])} == {"ipv4", "netfilter"}


def test_router_advertisements_stay_heard_before_forwarding_begins() -> None:
    found = wanted(net__ipv6__conf__eth0__accept_ra="1")
    assert found[:2] == [("net/ipv6/conf/eth0/accept_ra", "2"), ("net/ipv6/conf/all/forwarding", "1")]


def test_strict_reverse_path_filtering_becomes_loose() -> None:
    assert ("net/ipv4/conf/all/rp_filter", "2") in wanted(net__ipv4__conf__eth0__rp_filter="1")
    assert "net/ipv4/conf/all/rp_filter" not in dict(wanted(net__ipv4__conf__all__rp_filter="2"))


def test_node_ports_of_localhost_need_packets_from_it_let_out() -> None:
    state = {**FRESH, "net/ipv4/conf/all/route_localnet": "0"}
    found = sysctls.wanted(list(Family), "eth0", state.get, from_loopback=True)
    assert ("net/ipv4/conf/all/route_localnet", "1") in [tuple(each) for each in found]
    assert "route_localnet" not in str(sysctls.wanted(list(Family), "eth0", state.get))


def test_services_want_connections_remembered_and_counted() -> None:
    names = ("acct", "tcp_timeout_close_wait", "tcp_timeout_established")
    state = {**FRESH, **{f"net/netfilter/nf_conntrack_{name}": "0" for name in names}}
    found = dict(sysctls.wanted(list(Family), "eth0", state.get, serving=True, counted=True))
    assert [found[f"net/netfilter/nf_conntrack_{name}"] for name in names] == ["1", "3600", "86400"]
    assert not any("acct" in s.name or "timeout" in s.name for s in sysctls.wanted([], "eth0", state.get))


def test_a_kernel_without_conntrack_is_left_alone() -> None:
    state = {name: value for name, value in FRESH.items() if "conntrack" not in name}
    assert "nf_conntrack" not in str(sysctls.wanted(list(Family), "eth0", state.get))


# --- notices --------------------------------------------------------------------------------------

TUNNEL = VxlanLink("plvxlan", 85, 8472, "eth0", ip_address("172.30.1.1"), "02:00:00:00:00:01", 1450, ())
PEER, END, MAC = ip_network("10.244.2.0/24"), ip_address("10.244.2.0"), "02:00:00:00:00:02"
POD = ip_network("10.244.1.5/32")
DESIRED: dict[Table, dict[Any, Any]] = {
    **{table: {} for table in Table},
    Table.BRIDGES: {},
    Table.PORTS: {},
    Table.LINKS: {"plvxlan": TUNNEL},
    Table.NEIGHBOURS: {("plvxlan", END): Neighbour("plvxlan", END, MAC)},
    Table.FDB: {("plvxlan", MAC): FdbEntry("plvxlan", MAC, ip_address("172.30.1.2"))},
    Table.ROUTES: {PEER: Route(PEER, END, "plvxlan"), POD: Route(POD, None, "plpod")},
}
NAMES = {2: "eth0", 3: "plvxlan", 4: "plpod"}


def judged(kind: int, body: bytes) -> Notice | None:
    return monitor.judge(Message(kind, 0, 0, body), DESIRED, lambda index: NAMES.get(index, ""))


def link_body(name: str, index: int = 3) -> bytes:
    return links.change(index, up=True, name=name, what=name).body


def route_body(destination: str, protocol: int = 85) -> bytes:
    return routes.delete(KernelRoute(ip_network(destination), None, 3, protocol=protocol)).body


@pytest.mark.parametrize(
    ("kind", "body", "notice"),
    [
        (links.RTM_DELLINK, link_body("plvxlan"), Notice(Table.LINKS)),
        (links.RTM_DELLINK, link_body("plpod"), Notice(Table.ROUTES)),
        (links.RTM_DELLINK, link_body("plother"), None),
        (links.RTM_NEWLINK, link_body("eth0"), Notice(uplink=True)),
        (links.RTM_DELLINK, link_body("eth0"), Notice(uplink=True)),
        (routes.RTM_DELROUTE, route_body("10.244.2.0/24"), Notice(Table.ROUTES)),
        (routes.RTM_DELROUTE, route_body("10.244.2.0/24", protocol=4), Notice(Table.ROUTES)),
        (routes.RTM_DELROUTE, route_body("10.244.3.0/24"), None),
        (neighbours.RTM_DELNEIGH, neighbours.delete_neighbour(3, END).body, Notice(Table.NEIGHBOURS)),
        (neighbours.RTM_DELNEIGH, neighbours.delete_neighbour(2, END).body, None),
        (neighbours.RTM_DELNEIGH, neighbours.delete_neighbour(3, ip_address("10.244.9.0")).body, None),
        (
            neighbours.RTM_DELNEIGH,
            neighbours.delete_fdb(3, MAC, ip_address("172.30.1.2")).body,
            Notice(Table.FDB),
        ),
        (neighbours.RTM_NEWNEIGH, neighbours.set_neighbour(3, END, MAC).body, None),
    ],
)
def test_a_notice_matters_if_what_went_is_desired(kind: int, body: bytes, notice: Notice | None) -> None:
    assert judged(kind, body) == notice


# --- window and reports ---------------------------------------------------------------------------


def state(**changes: Any) -> report.State:
    fields: dict[str, Any] = {
        "node": "n1",
        "ready": True,
        "blockers": [],
        "counts": Counts(3, 40, 2, 0.25),
        "pending": 0,
        "failures": [],
        "refused": [],
        "applied": {"Node": "17"},
        "away": {},
        "tables": DESIRED,
        "units_compiled": 5,
        "rows_compared": 6,
        "attachments": 1,
    }
    return report.State(**(fields | changes))


def test_status_names_rows_that_failed_and_counts_the_others() -> None:
    failure = Failure(Table.FDB, ("plvxlan", MAC), KernelError.of(19, "set fdb", "no such device"))
    told = report.status(state(failures=[failure]))
    assert told["failures"] == [
        {"table": "fdb", "key": f"plvxlan {MAC}", "error": "set fdb: no such device (ENODEV)"}
    ]
    assert (told["generation"], told["operations"], told["tables"]["routes"]) == (3, 40, 2)
    json.dumps(told)


def test_metrics_are_prometheus_text() -> None:
    failure = Failure(Table.FDB, "x", KernelError.of(19, "set fdb"))
    lines = report.metrics(state(failures=[failure], away={"Node": 'no "answer"'})).splitlines()
    assert "podlane_agent_operations_total 40" in lines
    assert 'podlane_agent_failed_rows{table="fdb"} 1' in lines
    assert 'podlane_agent_failed_rows{table="routes"} 0' in lines
    assert 'podlane_agent_api_away{kind="Node"} 1' in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert all(line.startswith("#") or len(line.rsplit(" ", 1)) == 2 for line in lines)


def test_rows_are_told_with_their_fields() -> None:
    member = SetMember(SetName.NODE_IPS, POD)
    key = ListKey("default", "web", "http", Protocol.TCP, Family.IPV4, "cluster")
    assert report.plain(member) == {"set": "node-ips", "value": "10.244.1.5/32"}
    assert report.plain(key)["protocol"] == "TCP"
    assert report.plain(DESIRED[Table.ROUTES][PEER]) == {
        "destination": "10.244.2.0/24",
        "via": "10.244.2.0",
        "device": "plvxlan",
        "source": None,
        "onlink": False,
        "mtu_bytes": 0,
    }


def ask(path: Path, request: bytes) -> bytes:
    async def talk() -> bytes:
        server = http.Server({"/x": lambda: http.text("here")})
        await server.listen_unix(path)
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(request)
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer
        finally:
            await server.close()

    return asyncio.run(talk())


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"200 OK", b"here\n"),
        (b"GET /x?verbose HTTP/1.1\r\n\r\n", b"200 OK", b"here\n"),
        (b"HEAD /x HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"POST /x HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", b"GET only\n"),
        (b"GET /y HTTP/1.1\r\n\r\n", b"404 Not Found", b"there is /x\n"),
        (b"hello\r\n\r\n", b"400 Bad Request", b"not an HTTP request\n"),
    ],
)
def test_the_window_answers_get(tmp_path: Path, request_: bytes, status: bytes, body: bytes) -> None:
    head, _, rest = ask(tmp_path / "agent.sock", request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert rest == body


def test_a_head_without_end_is_dropped(tmp_path: Path) -> None:
    assert ask(tmp_path / "agent.sock", b"GET /" + b"x" * 40000) == b""


def test_a_socket_that_a_dead_agent_left_is_taken_over_a_live_ones_is_not(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"

    async def work() -> None:
        one, two = http.Server({}), http.Server({})
        await one.listen_unix(path)
        with pytest.raises(Exception, match="another agent answers"):
            await two.listen_unix(path)
        await one.close()
        import socket

        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        await two.listen_unix(path)
        await two.close()

    asyncio.run(work())


@pytest.mark.parametrize("where", ["9100", "a:b", "1.2.3.4:0", "::1:9100", "1.2.3.4:70000"])
def test_an_address_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match="write IP:PORT"):
        http.split_address(where)


def test_addresses() -> None:
    assert http.split_address("[::1]:9100") == ("::1", 9100)
    assert http.split_address(":9100") == ("", 9100)


# --- options --------------------------------------------------------------------------------------


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="node_nam"):
        options.parse({"node_name": "n1", "node_nam": "x"})


def test_configuration_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    monkeypatch.setattr(main, "CONFIG_PATH", str(tmp_path / "default.yaml"))
    assert main.read_config(str(tmp_path / "default.yaml")) == DEFAULT
    with pytest.raises(ConfigError, match="there is no such file"):
        main.read_config(str(path))
    path.write_text("ipFamilies: [IPv6]\n")
    assert main.read_config(str(path)).ip_families == [Family.IPV6]
    path.write_text("{")
    with pytest.raises(ConfigError, match="not YAML"):
        main.read_config(str(path))
    path.write_text("ipFamilies: [IPv5]\n")
    with pytest.raises(ConfigError, match="ipFamilies"):
        main.read_config(str(path))


def cli(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(command, words)
    return result.exit_code, f"{result.output}{result.exception or ''}"


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent")
    assert "absent: there is no such file" in cli("--node-name", "n1", "--config", absent)[1]
    assert cli("--kubeconfig", absent)[0] == 2  # no --node-name
    both = cli("--node-name", "n1", "--standalone", "--kubeconfig", absent)[1]
    assert "--standalone uses no API: leave --kubeconfig out" in both


def test_flags_without_effect_say_so(tmp_path: Path) -> None:
    words = ("--node-name", "n1", "--config", str(tmp_path / "absent"))
    assert "no effect" not in cli(*words)[1]
    assert "--dns on has no effect yet" in cli(*words, "--dns", "on")[1]


def test_what_is_remembered_is_of_this_boot_and_node(tmp_path: Path) -> None:
    known = Known((ip_network("10.244.1.0/24"), ip_network("fd00::/64")), 1450)
    Memory(tmp_path, "boot", "node-1").keep(known)
    assert Memory(tmp_path, "boot", "node-1").known == known
    assert Memory(tmp_path, "another", "node-1").known is None
    assert Memory(tmp_path, "boot", "node-2").known is None
    for spoiled in ("", "{", '{"boot": "boot", "node": "node-1", "pools": ["x"], "mtu_bytes": 1}'):
        (tmp_path / "node.json").write_text(spoiled)
        assert Memory(tmp_path, "boot", "node-1").known is None
