"""What Nodes say of themselves and cannot all be true: two with one address, or with prefixes that overlap.

Each Node that is concerned gets the condition podlane.dev/Misconfigured and an event. Nothing is taken from
it: of rows that contradict each other every agent keeps the older Node's, and all the rest goes on.

    NoInternalIP          no InternalIP of any of ipFamilies: nobody can send to its pods
    AddressTaken          another Node has one of its InternalIPs
    PodCIDROverlap        another Node has (part of) one of its podCIDRs
    PodCIDRUnreadable     not a prefix
    PodCIDRMissing        of a family of ipFamilies, or none at all and nobody gives one

A podCIDR outside of the configured podCIDRs works, and is told by an event (PodCIDRForeign).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final

from podlane.controller.client import Obj
from podlane.controller.context import Context, Controller
from podlane.controller.informer import Key, key_of
from podlane.controller.meta import created_s, is_deleting
from podlane.controller.node_conditions import COMPONENT, Problem, tell
from podlane.controller.prefix_index import PrefixIndex
from podlane.errors import ConfigError
from podlane.model import pools
from podlane.model.addresses import Address, Prefix, family_of, prefix

MISCONFIGURED: Final = "podlane.dev/Misconfigured"
PATIENCE_S: Final = 60.0
"""How long a Node may lack addresses and prefixes: kubelets register first and tell afterwards."""
_OVER: Final = Problem("NothingFound", "its addresses and podCIDRs are its own")


class NodeClaims(Controller):
    resource: ClassVar[str] = "nodes"

    def __init__(self, context: Context, *, allocated: bool) -> None:
        """allocated: prefixes are given here, so that a Node without any is no affair of this one."""
        self._allocated = allocated
        self._at: dict[Address, set[str]] = {}
        self._prefixes = PrefixIndex()
        self._families = tuple(context.config.ip_families)
        self._foreign: set[tuple[str, Prefix]] = set()
        super().__init__(context)

    def changed(self, old: Obj | None, new: Obj | None) -> None:
        before, after = (_claims(each) if each is not None else ([], []) for each in (old, new))
        if new is not None and (old is None or before != after):
            self.queue.add(key_of(new))
        if before == after:
            return
        name = (new or old or {})["metadata"]["name"]
        concerned = set(self._others(name, *before))
        for where in before[0]:
            self._at[where].discard(name)
            if not self._at[where]:
                del self._at[where]
        for each in before[1]:
            self._prefixes.remove(each, name)
        for where in after[0]:
            self._at.setdefault(where, set()).add(name)
        for each in after[1]:
            self._prefixes.add(each, name)
        concerned.update(self._others(name, *after))
        for other in concerned:
            self.queue.add(("", other))

    def _others(self, name: str, addresses: list[Address], prefixes: list[Prefix]) -> Iterator[str]:
        for where in addresses:
            yield from self._at.get(where, set()) - {name}
        for each in prefixes:
            yield from (other for _, other in self._prefixes.overlapping(each) if other != name)

    async def reconcile(self, key: Key) -> float | None:
        node = self.objects.get(key[1])
        if node is None or is_deleting(node):
            return None
        young_s = created_s(node) + PATIENCE_S - self.context.now()
        found = [*self._conflicts(node), *(() if young_s > 0 else self._missing(node))]
        problem = Problem(found[0].reason, "; ".join(each.message for each in found)) if found else None
        await tell(self.context, node, MISCONFIGURED, problem, _OVER)
        self._tell_foreign(node)
        return young_s if young_s > 0 and any(True for _ in self._missing(node)) else None

    def _conflicts(self, node: Obj) -> Iterator[Problem]:
        name = node["metadata"]["name"]
        addresses, prefixes = _claims(node)
        for where in addresses:
            if others := sorted(self._at.get(where, set()) - {name}):
                yield Problem("AddressTaken", f"InternalIP {where} is also that of {_some(others)}")
        for each in prefixes:
            for theirs, other in sorted(self._prefixes.overlapping(each), key=lambda found: found[1]):
                if other != name:
                    yield Problem("PodCIDROverlap", f"podCIDR {each} overlaps {theirs} of node {other}")
        for text in _texts(node):
            try:
                prefix(text)
            except ConfigError as error:
                yield Problem("PodCIDRUnreadable", f"spec.podCIDRs: {error}")

    def _missing(self, node: Obj) -> Iterator[Problem]:
        addresses, prefixes = _claims(node)
        if not any(family_of(each) in self._families for each in addresses):
            families = " or ".join(self._families)
            yield Problem("NoInternalIP", f"no InternalIP of {families}; set one (kubelet --node-ip)")
        lacking = [f for f in self._families if all(family_of(each) is not f for each in prefixes)]
        if len(lacking) == len(self._families) and self._allocated:
            return
        if len(lacking) == len(self._families):
            remedy = "set controller.allocateNodeCIDRs, or --allocate-node-cidrs of the controller-manager"
            yield Problem("PodCIDRMissing", f"no podCIDR, and nobody gives one: {remedy}")
        elif lacking:
            yield Problem("PodCIDRMissing", f"no podCIDR of {', '.join(lacking)}; register the node anew")

    def _tell_foreign(self, node: Obj) -> None:
        wholes, name = self.context.config.pods, node["metadata"]["name"]
        for each in _claims(node)[1]:
            whole = wholes.get(family_of(each))
            if whole is not None and not each.subnet_of(whole) and (name, each) not in self._foreign:  # type: ignore[arg-type]
                self._foreign.add((name, each))
                message = f"podCIDR {each} is not of podCIDRs {whole}; every node takes it in by itself"
                self.context.events.normal("Node", node, "PodCIDRForeign", message, COMPONENT)


def _claims(node: Obj) -> tuple[list[Address], list[Prefix]]:
    """InternalIPs and podCIDRs, as far as they can be read; each once."""
    addresses = (node.get("status") or {}).get("addresses") or ()
    internal = pools.addresses(a.get("address", "") for a in addresses if a.get("type") == "InternalIP")
    found: list[Prefix] = []
    for text in _texts(node):
        try:
            found.append(prefix(text))
        except ConfigError:
            continue
    return list(dict.fromkeys(internal)), list(dict.fromkeys(found))


def _texts(node: Obj) -> list[str]:
    spec = node.get("spec") or {}
    found: list[str] = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    return found


def _some(names: list[str]) -> str:
    """A few of them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ("node " if len(names) == 1 else "nodes ") + ", ".join(names[:3]) + more
