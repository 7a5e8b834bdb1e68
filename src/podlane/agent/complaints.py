"""What could not be done of an object, to be told at the object itself as an Event. Pure.

could not be compiled       the sentences of the compiler; every node finds the same: one Event
of this node                what of its own Node cannot be compiled, and an address that none of its links has
another, older object has   what two Services claim, an external address and port, say: one Event
the kernel refuses a row    this node's own trouble: an Event for each node
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from podlane.compile.engine import Compiler
from podlane.compile.peers import NAME as PEERS
from podlane.compile.peers import OWN
from podlane.compile.store import Contradiction, UnitKey
from podlane.compile.tables import FrontendKey, HealthCheckKey, ListKey, NodePortKey, Table
from podlane.kernel.driver import Failure

NOT_PROGRAMMED: Final = "NotProgrammed"
TAKEN: Final = "AddressTaken"
HEALTH_CHECK_FAILED: Final = "FailedToStartServiceHealthcheck"

_KINDS: Final = {
    ("services", "service"): "Service",
    ("node", "node"): "Node",
    ("peers", "node"): "Node",
    ("node", "service-cidr"): "ServiceCIDR",
    ("policy", "policy"): "NetworkPolicy",
    ("pods", "pod"): "Pod",
}


class Complaint(NamedTuple):
    """One thing to say of one object. node: "" when every node would say the same."""

    kind: str
    namespace: str
    name: str
    reason: str
    message: str
    node: str = ""

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits, the same for the same complaint on every node that has it."""
        return hashlib.sha256("\0".join(self).encode()).hexdigest()[:16]


def complaints(compiler: Compiler, failures: Iterable[Failure], uplink: str = "") -> set[Complaint]:
    """uplink: why none was found, "" if one was."""
    found: set[Complaint] = set()
    me = compiler.view.me
    own = [*compiler.refused.get(OWN, ()), *([uplink] if uplink and me.node is not None else [])]
    found.update(Complaint("Node", "", me.name, NOT_PROGRAMMED, sentence, me.name) for sentence in own)
    for unit, sentences in compiler.refused.items():
        found.update(_about(unit, NOT_PROGRAMMED, sentence) for sentence in sentences if _kind(unit))
    for contradiction in compiler.contradictions:
        found.update(_lost(contradiction))
    for failure in failures:
        found.update(_refused(compiler, failure))
    return found


def _kind(unit: UnitKey) -> str:
    return _KINDS.get((unit.capability, unit.what), "")


def _about(unit: UnitKey, reason: str, message: str, node: str = "") -> Complaint:
    return Complaint(_kind(unit), unit.namespace, unit.name, reason, message, node)


def _lost(contradiction: Contradiction) -> Iterator[Complaint]:
    winner, what = contradiction.winner, place(contradiction.key)
    if _kind(winner) == "Service":
        owner = f"Service {winner.namespace}/{winner.name}"
        for loser in contradiction.losers:
            yield _about(loser, TAKEN, f"{what} belongs to {owner}, which is older; this one does without it")


def _refused(compiler: Compiler, failure: Failure) -> Iterator[Complaint]:
    unit, node = _owner(compiler, failure), compiler.view.me.name
    if unit is None or not _kind(unit) or unit.capability == PEERS:
        return  # what a peer lacks for a moment is many nodes' business: it is in the status
    if failure.table is Table.HEALTH_CHECKS:
        message = (
            f'node {node} failed to start healthcheck "{unit.namespace}/{unit.name}" '
            f"on port {failure.key.port}: {failure.error.detail}"
        )
        yield _about(unit, HEALTH_CHECK_FAILED, message, node)
    else:
        message = f"node {node}: {failure.table} {place(failure.key)}: {failure.error}"
        yield _about(unit, NOT_PROGRAMMED, message, node)


def _owner(compiler: Compiler, failure: Failure) -> UnitKey | None:
    if isinstance(failure.key, ListKey):  # known even when the row has gone meanwhile
        return UnitKey("services", "service", failure.key.service, failure.key.namespace)
    return compiler.owner(failure.table, failure.key)


def place(key: Any) -> str:
    """A row's key in words."""
    match key:
        case FrontendKey(address, protocol, port):
            where = f"[{address}]" if address.version == 6 else address
            return f"{where}:{port}/{protocol}"
        case NodePortKey(family, protocol, port):
            return f"node port {port}/{protocol} of {family}"
        case HealthCheckKey(family, port):
            return f"health check node port {port} of {family}"
        case tuple():
            return " ".join(map(str, key))
    return str(key)
