"""Pods' packets through iptables' FORWARD (others.acceptForward), where a firewall drops what is forwarded.

A verdict of podlane's own tables cannot do that: each base chain of a hook decides for itself, and one
that drops is final. So this is the one thing that podlane writes into others' chains: two rules a family
and pod prefix at the top of FORWARD, with a comment that says whose they are. They accept for that chain
alone: NetworkPolicy has judged before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from podlane.kernel.xtables import command
from podlane.kernel.xtables.command import PLACES, Place
from podlane.kernel.xtables.ruleset import Rule, TableText
from podlane.model.addresses import Prefix, family_of

COMMENT: Final = "podlane accepts pods"
_FORWARD: Final = "FORWARD"


def drops(table: TableText | None) -> bool:
    """Of the table filter: it drops what no rule accepts."""
    return table is not None and table.chains.get(_FORWARD) == "DROP"


def accepted(table: TableText) -> list[Rule]:
    """The rules of ours that are there."""
    return [rule for rule in table.rules if rule.chain == _FORWARD and rule.comment == COMMENT]


def changes(table: TableText, pods: Iterable[Prefix]) -> str:
    """For `iptables-restore --noflush`; "" when all is right. pods: of the table's family; none: ours go."""
    wanted = [_spec(option, prefix) for prefix in pods for option in ("-s", "-d")]
    there = accepted(table)
    first = [rule.spec for rule in table.rules if rule.chain == _FORWARD][: len(wanted)]
    if sorted(first) == sorted(wanted) and len(there) == len(wanted):
        return ""
    lines = [f"-D {_FORWARD} {rule.spec}" for rule in there]
    lines += [f"-I {_FORWARD} 1 {spec}" for spec in wanted]
    return "\n".join(["*filter", *lines, "COMMIT", ""]) if lines else ""


def _spec(option: str, prefix: Prefix) -> str:
    return f'{option} {prefix} -m comment --comment "{COMMENT}" -j ACCEPT'


def ensure(
    pods: Iterable[Prefix], held: Mapping[Place, TableText], netns_fd: int | None = None
) -> Iterator[Place]:
    """Where FORWARD drops, pods are accepted; yields what was changed. held: the table filter of each."""
    prefixes = list(pods)
    for place, table in held.items():
        own = [p for p in prefixes if family_of(p) is place.family]
        text = changes(table, own if drops(table) else [])
        if text:
            command.restore(place, text, netns_fd)
            yield place


def remove(netns_fd: int | None = None) -> list[Place]:
    """Our rules go from everywhere. Raises KernelError."""
    held = {place: t for place in PLACES if (t := command.save(place, netns_fd).get("filter")) is not None}
    return list(ensure([], held, netns_fd))
