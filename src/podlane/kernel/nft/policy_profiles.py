"""What pods with the same policies have in common: one chain, which asks them all. Pure.

    few peers    a jump to each policy's chain, then a drop
    many peers   the peers of all rules with the same ports, whichever policy they are of, in one set that is
                 the union of theirs, and one rule for it; a jump to those policies alone that have rules for
                 anyone or for prefixes; then a drop

So a pod with a hundred policies that open one port to a hundred kinds of peers costs one lookup. Which rule
of which policy it was, `explain` tells from the rows; the kernel's answer is the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias

from podlane.compile.tables import Direction, Policy, PolicyKey, PolicyRule
from podlane.kernel.nft import expressions as nft
from podlane.kernel.nft import policy_chains as chains
from podlane.kernel.nft.policy_chains import Contents
from podlane.kernel.nft.ruleset import Chain, rule
from podlane.model.addresses import Family

FUSE_FROM: Final = 16
"""From so many sets of peers on they are looked up together."""

ProfileKey: TypeAlias = tuple[Direction, tuple[PolicyKey, ...]]
Unions: TypeAlias = Mapping[str, frozenset[str]]
"""name of a set -> ids of the PodSets that it is the union of"""


class Profile(NamedTuple):
    """unions: the same in every family."""

    chain: Chain
    contents: dict[str, Contents]
    unions: dict[str, frozenset[str]]


def profile(
    key: ProfileKey, rows: Mapping[PolicyKey, Policy], family: Family, fuse_from: int = FUSE_FROM
) -> Profile:
    direction, policies = key
    known = [(each, rows[each].rules) for each in policies if each in rows]
    if sum(len(r.peers or ()) for _, rules in known for r in rules) < fuse_from:
        return Profile(chains.profile(policies), {}, {})
    found = Profile(Chain(), {}, {})
    load = nft.source(family) if direction is Direction.INGRESS else nft.destination(family)
    rules = []
    for first, ids in _by_ports(r for _, each in known for r in each):
        name = _union(ids, found.unions)
        for port in chains.port_conditions(first, family, found.contents):
            comment = f"{len(ids)} kinds of peers"
            rules.append(rule(comment, load, nft.member(name), port, nft.counter(), nft.end(nft.ACCEPT)))
    others = [each for each, of in known if any(r.peers is None or r.blocks for r in of)]
    return found._replace(chain=Chain((*rules, *chains.profile(others).rules)))


def _by_ports(rules: Iterable[PolicyRule]) -> list[tuple[PolicyRule, frozenset[str]]]:
    """Rules for pods by what they open: one that stands for all, and the peers of all."""
    found: dict[object, tuple[PolicyRule, set[str]]] = {}
    for each in rules:
        if each.peers:
            found.setdefault((each.ports, each.named), (each, set()))[1].update(each.peers)
    return [(first, frozenset(ids)) for first, ids in found.values()]


def _union(ids: frozenset[str], unions: dict[str, frozenset[str]]) -> str:
    if len(ids) == 1:
        return next(iter(ids))
    name = f"any-{hashlib.sha256(' '.join(sorted(ids)).encode()).hexdigest()[:16]}"
    unions[name] = ids
    return name
