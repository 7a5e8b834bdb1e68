"""A cluster changes its backend node by node while pods speak: both ways are kept until all have changed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from podlane.compile.tables import Table
from podlane.kernel.rtnl.driver import RtnlDriver
from tests.netns.agent_nodes import TestNode, wait_until
from tests.netns.fleet import Bytes, Datagrams, Fleet, fleet

DEVICES = {"vxlan": "plvxlan", "host-gw": "eth0", "wireguard": "plwg", "ipip": "plipip"}


def devices(node: TestNode) -> set[str]:
    """By which its routes to other nodes' pods lead, BGP's aside."""
    driver = RtnlDriver(node.fd)
    try:
        routes = driver.actual()[Table.ROUTES].values()
    finally:
        driver.close()
    return {route.device for route in routes if route.destination.prefixlen in (24, 64)}


def settled(made: Fleet, kind: str) -> bool:
    said = [made.said(node) for node in made.nodes]
    return all(
        each == {"type": kind, "receives": each["receives"], "sends": [kind]} for each in said
    ) and all(list(each["receives"]) == [kind] for each in said)


def roll(made: Fleet, old: str, new: str) -> None:
    """Node after node; each keeps the old way until the last has the new one."""
    for number, node in enumerate(made.nodes, 1):
        made.configure(node, backend={"type": new})
        said = wait_until(
            lambda node=node: made.said(node).get("type") == new and made.said(node), "it is told"
        )
        if number < len(made.nodes):
            assert set(said["receives"]) == {old, new}, [made.said(each) for each in made.nodes]
    try:
        wait_until(lambda: settled(made, new), f"all send by {new}, and the old way is gone")
    except AssertionError as error:
        raise AssertionError(f"{error}: {[made.said(node) for node in made.nodes]}") from None
    if new in DEVICES:
        for node in made.nodes:
            wait_until(lambda node=node: devices(node) == {DEVICES[new]}, f"{node.name} sends by {new}")


def test_nothing_is_lost_while_the_backend_changes_under_running_pods(tmp_path: Path) -> None:
    with fleet(tmp_path, 3, backend={"type": "vxlan"}, bgp={"bfd": False}) as made, ExitStack() as streams:
        made.start()
        one, two, three = made.nodes
        at = {node.name: node.add_pod(node.name) for node in made.nodes}
        pods = {node.name: node.pods[node.name] for node in made.nodes}
        wait_until(lambda: settled(made, "vxlan"), "all is told")
        running: list[Datagrams] = []
        for port, (client, server, family) in enumerate(
            [(one, two, "IPv4"), (two, three, "IPv6"), (three, one, "IPv4"), (one, three, "IPv6")], 9900
        ):
            address = at[server.name][family]
            stream = Datagrams(pods[client.name], pods[server.name], address, port)
            running.append(streams.enter_context(stream))
        flow = streams.enter_context(Bytes(pods[two.name], pods[one.name], at[one.name]["IPv4"]))
        for old, new in (
            ("vxlan", "wireguard"),
            ("wireguard", "bgp"),
            ("bgp", "vxlan"),
            ("vxlan", "host-gw"),
        ):
            before, blocks = [each.sent for each in running], flow.blocks
            roll(made, old, new)
            assert [each.lost for each in running] == [0] * len(running), f"{old} to {new}"
            assert all(each.sent > sent for each, sent in zip(running, before, strict=True))
            assert not flow.broken, f"{old} to {new}: {flow.broken}"
            assert flow.blocks > blocks
