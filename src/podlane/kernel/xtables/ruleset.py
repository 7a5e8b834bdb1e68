"""iptables-save's text, read; and the text for `iptables-restore --noflush` that takes chains away. Pure.

*nat
:PREROUTING ACCEPT [0:0]        a built-in chain with its policy
:KUBE-SERVICES - [0:0]          a chain of somebody's
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
COMMIT
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from msgspec import Struct


class Rule(NamedTuple):
    """spec: what follows `-A CHAIN`, as printed."""

    chain: str
    spec: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.spec)

    def option(self, *names: str) -> str:
        """The word after one of these options, "" if there is none."""
        words = self.words
        return next((after for word, after in pairwise(words) if word in names), "")

    @property
    def target(self) -> str:
        return self.option("-j", "-g")

    @property
    def comment(self) -> str:
        return self.option("--comment")


class TableText(Struct, frozen=True):
    """chains: name -> policy, "" for a chain that is not built in."""

    name: str
    chains: dict[str, str]
    rules: tuple[Rule, ...]


def parse(text: str) -> dict[str, TableText]:
    """By the name of the table. Raises ValueError for a line that is none of iptables-save's."""
    found: dict[str, TableText] = {}
    name, chains, rules = "", dict[str, str](), list[Rule]()
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("*"):
            name, chains, rules = line[1:].strip(), {}, []
        elif line.startswith(":") and name:
            chain, policy, *_ = (*line[1:].split(), "", "")
            chains[chain] = "" if policy == "-" else policy
        elif line.startswith("-A ") and name:
            _, chain, spec = (*line.split(" ", 2), "")[:3]
            shlex.split(spec)
            rules.append(Rule(chain, spec))
        elif line.strip() == "COMMIT" and name:
            found[name] = TableText(name, chains, tuple(rules))
            name = ""
        else:
            raise ValueError(f"no line of iptables-save: {line[:80]!r}")
    return found


class Removal(Struct, frozen=True):
    """What goes of one table. kept: chains that somebody else's rules still lead to."""

    table: str
    rules: tuple[Rule, ...]
    chains: tuple[str, ...]
    kept: tuple[str, ...] = ()


def removal(
    table: TableText, owned: Callable[[str, str], bool], rule_owned: Callable[[str, Rule], bool] | None = None
) -> Removal:
    """owned(table, chain): the chain goes, with the rules of built-in chains that lead to it.

    rule_owned(table, rule): other rules of built-in chains that go. A chain that a rule of somebody's own
    chain leads to stays, and what it leads to.
    """
    ours = {chain for chain, policy in table.chains.items() if not policy and owned(table.name, chain)}
    kept = _reached(table, ours)
    ours -= kept
    gone = [
        rule
        for rule in table.rules
        if rule.chain not in ours
        and table.chains.get(rule.chain)
        and (rule.target in ours or (rule_owned is not None and rule_owned(table.name, rule)))
    ]
    return Removal(table.name, tuple(gone), tuple(sorted(ours)), tuple(sorted(kept)))


def _reached(table: TableText, ours: set[str]) -> set[str]:
    """Chains of ours that rules of others' own chains lead to, directly or not."""
    leads: dict[str, set[str]] = {}
    for rule in table.rules:
        leads.setdefault(rule.chain, set()).add(rule.target)
    foreign = [c for c, policy in table.chains.items() if not policy and c not in ours]
    waiting = [target for chain in foreign for target in leads.get(chain, ())]
    found: set[str] = set()
    while waiting:
        chain = waiting.pop()
        if chain in ours and chain not in found:
            found.add(chain)
            waiting += leads.get(chain, ())
    return found


def restore_text(removals: list[Removal]) -> str:
    """For `iptables-restore --noflush`: each table is one transaction. "" if there is nothing to do."""
    return "".join(line + "\n" for each in removals for line in _lines(each))


def _lines(each: Removal) -> Iterator[str]:
    if not each.rules and not each.chains:
        return
    yield f"*{each.table}"
    yield from (f":{chain} - [0:0]" for chain in each.chains)  # empties it
    yield from (f"-D {rule.chain} {rule.spec}" for rule in each.rules)
    yield from (f"-X {chain}" for chain in each.chains)
    yield "COMMIT"
