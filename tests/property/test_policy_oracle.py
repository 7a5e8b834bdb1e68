"""NetworkPolicy: what the compiled tables decide is what the API's documentation says, flow by flow."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.compile.engine import Compiler
from podlane.compile.pods import attachments_from_status
from podlane.compile.policy import CAPABILITY
from podlane.compile.policy_sim import Judge, PolicyFlow
from podlane.compile.tables import Direction, Table
from podlane.compile.view import ATTACHMENT, Change
from podlane.model.addresses import Protocol
from podlane.model.config import NetworkConfig
from tests.policy_oracle import allowed
from tests.property.policy_strategies import NODES, OUTSIDE, PORTS, World, put, typed, updates, worlds

PROBES = [*(("TCP", port) for port in PORTS), ("UDP", 80), ("UDP", 81), ("SCTP", 80), ("ICMP", 0)]


def attach(compiler: Compiler) -> None:
    """The attachments that the statuses of this node's pods speak of, and no others."""
    known = dict(compiler.view.me.attachments)
    wanted = {each.key: each for each in attachments_from_status(compiler.view)}
    compiler.apply(Change(ATTACHMENT, known[key], None) for key in known.keys() - wanted.keys())
    compiler.apply(Change(ATTACHMENT, None, each) for each in wanted.values())


def compile_world(world: World) -> dict[str, Compiler]:
    made = {node: Compiler(node, NetworkConfig(), [CAPABILITY]) for node in NODES}
    for compiler in made.values():
        compiler.apply(
            Change(kind, None, typed(kind, each))
            for kind in ("NetworkPolicy", "Pod", "Namespace")
            for each in world[kind]
        )
        attach(compiler)
    return made


def parties(world: World, family: int) -> Iterator[tuple[Any, str, str]]:
    """(what the oracle takes, address, node)"""
    for pod in world["Pod"]:
        ended = pod["status"]["phase"] != "Running"
        if not ended:
            where = next(i["ip"] for i in pod["status"]["podIPs"] if (":" in i["ip"]) == (family == 6))
            yield pod, where, "" if pod["spec"].get("hostNetwork") else pod["spec"]["nodeName"]
    for where in OUTSIDE[family]:
        yield where, where, ""


def agree(world: World, compilers: dict[str, Compiler]) -> None:
    judges = {node: Judge(compiler.tables) for node, compiler in compilers.items()}
    for family in (4, 6):
        every = list(parties(world, family))
        for source, source_at, source_node in every:
            for target, target_at, target_node in every:
                if not source_node and not target_node:
                    continue  # no pod is concerned
                for protocol, port in PROBES:
                    flow = PolicyFlow(
                        ipaddress.ip_address(source_at),
                        ipaddress.ip_address(target_at),
                        Protocol(protocol) if protocol != "ICMP" else None,
                        port,
                    )
                    says = all(
                        judges[node].decide(flow, direction).allowed
                        for node, direction in (
                            (source_node, Direction.EGRESS),
                            (target_node, Direction.INGRESS),
                        )
                        if node
                    )
                    wanted = allowed(world, source, target, protocol, port, family)
                    assert says == wanted, (flow, says)


@settings(deadline=None, max_examples=150)
@given(world=worlds())
def test_tables_decide_as_documented(world: World) -> None:
    agree(world, compile_world(world))


@settings(deadline=None, max_examples=80)
@given(world=worlds(), history=st.lists(updates(), min_size=1, max_size=8))
def test_updates_end_as_documented_and_as_compiled_afresh(world: World, history: list[Any]) -> None:
    compilers = compile_world(world)
    for kind, value, there in history:
        put(world, kind, value, there)
        for compiler in compilers.values():
            known = compiler.view.objects(kind)
            new = typed(kind, value)
            if there:
                compiler.apply([Change(kind, None, new)])
            elif new.key in known:
                compiler.apply([Change(kind, known[new.key], None)])
            attach(compiler)
    agree(world, compilers)
    for node, fresh in compile_world(world).items():
        for table in (Table.POLICY_SETS, Table.PEERS, Table.POLICIES, Table.GUARDS):
            assert compilers[node].tables[table] == fresh.tables[table], table
