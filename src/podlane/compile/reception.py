"""Which backends a node is sent to by: nodes may have different ones, for a while or for good.

Each agent says in the annotation `podlane.dev/backend` of its own Node

    type      what its configuration names
    receives  what it takes packets in by, each with what a sender must know of it
    sends     what it sends to at least one other node by

and nobody sends by what the other does not receive. A node receives by its own backend, and as well by what

    - another node has configured that does not receive by this node's: then it sends there by that; or
    - it has told to receive by, and others or itself still send by.

So a cluster changes from one backend to another node by node. The first of the new ones goes on by the old
way in both directions; two new ones change over between them; the old way goes when nobody sends by it.
"""

from __future__ import annotations

from typing import Final

from podlane.compile.spoken import Said, data, demands, received, said, sends
from podlane.compile.view import Change, View
from podlane.errors import ConfigError
from podlane.model.backends import AVAILABLE_BACKENDS, BackendType
from podlane.model.config import NetworkConfig
from podlane.model.objects import Node

ANSWERED: Final = frozenset({BackendType.WIREGUARD, BackendType.BGP})
"""Ways that stand only when the other side has answered: a handshake, a session."""


def active(view: View) -> list[BackendType]:
    """What this node receives by: its own backend first."""
    own, me = view.config.backend.type, view.me.node
    told, sent = (received(me), sends(me)) if me is not None else (frozenset[str](), frozenset[str]())

    def needed(kind: BackendType) -> bool:
        # What this node itself has told to send by goes a step after the last route that leads there.
        kept = kind in told and bool(kind in sent or view.nodes_sending(kind))
        return kept or bool(view.nodes_demanding(kind))

    return [own, *(kind for kind in AVAILABLE_BACKENDS if kind != own and needed(kind))]


def flips(change: Change, view: View) -> bool:
    """Whether with this change of a Node something may become active, or no longer be."""
    if change.kind != "Node":
        return False
    old, new, config = change.old, change.new, view.config
    if change.name == view.me.name:
        return _kept(old, config) != _kept(new, config)
    for of, others in ((lambda n: demands(n, config), view.nodes_demanding), (sends, view.nodes_sending)):
        before, after = (of(each) if each is not None else frozenset[str]() for each in (old, new))
        for kind in (before ^ after) - {config.backend.type}:
            held = others(kind)
            if len(held) == (("", change.name) in held):
                return True
    return False


def _kept(node: Node | None, config: NetworkConfig) -> tuple[frozenset[str], frozenset[str]]:
    if node is None:
        return frozenset(), frozenset()
    own = {config.backend.type}
    return received(node) - own, sends(node) - own


def choose(node: Node, view: View) -> list[BackendType]:
    """By what that node is sent to, and what would do as well. Raises ConfigError when there is nothing."""
    config, told = view.config, said(node)
    own = config.backend.type
    if told is None:
        return [own]  # its agent has not begun
    common = [kind for kind in active(view) if kind in told.receives and _fits(kind, told, config)]
    if not common:
        raise ConfigError(_nothing(told, config))
    if told.type in common and told.type != own:
        # If both know both they agree on one, whichever of them is asked; else it is the other's own.
        common.sort(key=lambda kind: (kind not in (own, told.type), AVAILABLE_BACKENDS.index(kind)))
    standing = (k for k in common if k not in ANSWERED or (k, node.name) in view.standing)
    best = next(standing, common[-1])
    return [best, *(kind for kind in common if kind is not best)]


def _fits(kind: BackendType, told: Said, config: NetworkConfig) -> bool:
    return kind is not BackendType.VXLAN or told.receives[kind] == data(kind, config)


def _nothing(told: Said, config: NetworkConfig) -> str:
    theirs, own = ", ".join(told.receives) or "nothing", config.backend.type
    if own in told.receives:
        here, there = (
            " and ".join(f"{key} {value}" for key, value in each.items())
            for each in (data(own, config), told.receives[own])
        )
        return f"its {own} has {there}, this node's {here}: give both the same"
    return f"it receives by {theirs}, which this node does not send by: give both the same backend.type"
