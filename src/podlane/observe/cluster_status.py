"""`podlane status` of a cluster: what the API says of nodes, agents, controller and pools, judged. Pure.

From Nodes (conditions, and what each agent says of itself in an annotation), the pods of agents and
controllers, the controller's Lease, and LoadBalancerPools. What the agent of one node knows (its generation,
what it was refused) is the node's own to tell: on the node its socket is asked too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from podlane.model import agents
from podlane.model.addresses import Family
from podlane.model.agents import AGENT_ANNOTATION, NETWORK_UNAVAILABLE, AgentFacts
from podlane.observe.explanation import API_VERSION

Obj = dict[str, Any]

OURS: Final = "podlane.dev/"
STALE_LEASES: Final = 4
"""So many times its duration a lease has not been renewed: nobody leads."""
LEAST_STALE_S: Final = 60.0  # clocks differ


class Found(NamedTuple):
    """What was read. unread: what could not be, and why, as sentences."""

    nodes: list[Obj]
    pods: list[Obj]
    leases: list[Obj]
    pools: list[Obj]
    daemon_sets: list[Obj]
    unread: list[str]


class Condition(Struct, frozen=True, rename="camel"):
    """bad: it says that something is wrong."""

    type: str
    status: str
    reason: str
    message: str
    since: str
    bad: bool


class NodeStatus(Struct, frozen=True, rename="camel"):
    """agent: what it says of itself, None for a node without. pod: NS/NAME of the agent's, "" for none;
    state: of that pod, in kubectl's words. conditions: of the network. problems: as sentences.
    """

    name: str
    addresses: list[str]
    pod_cidrs: list[str] = msgspec.field(name="podCIDRs")
    agent: AgentFacts | None
    pod: str
    state: str
    restarts: int
    conditions: list[Condition]
    problems: list[str]


class ControllerStatus(Struct, frozen=True, rename="camel"):
    """leader: "" for none. renewed_ago_s: by this machine's clock. pods: NS/NAME -> state."""

    leader: str
    renewed_ago_s: float | None
    transitions: int
    pods: dict[str, str]


class PoolStatus(Struct, frozen=True, rename="camel"):
    """assigned, available: by family."""

    name: str
    ready: bool
    assigned: dict[str, int]
    available: dict[str, int]


class ClusterStatus(Struct, frozen=True, rename="camel"):
    """problems: what is wrong. notes: what is worth knowing. here: the answer of this node's own agent."""

    api_version: str
    kind: str
    server: str
    ready: bool
    nodes: list[NodeStatus]
    controller: ControllerStatus
    pools: list[PoolStatus]
    problems: list[str]
    notes: list[str]
    here: Obj | None

    def json(self) -> str:
        return msgspec.json.encode(self).decode()


def judge(server: str, found: Found, now: datetime, here: Obj | None = None) -> ClusterStatus:
    """here: what the agent of the node this runs on answers, None where none runs."""
    agents_at: dict[str, list[Obj]] = {}
    for pod in found.pods:
        if _component(pod) == "agent" and not _leaving(pod):
            agents_at.setdefault(pod.get("spec", {}).get("nodeName", ""), []).append(pod)
    nodes = [_node(each, agents_at.get(each["metadata"]["name"], [])) for each in found.nodes]
    controller = _controller(found, now)
    pools = [_pool(each) for each in found.pools]
    problems = [f"node {node.name}: {each}" for node in nodes for each in node.problems]
    problems += [*_of_controller(controller, found), *_of_pools(found.pools, pools), *_of_here(here)]
    notes = [*_rollouts(found.daemon_sets), *_differences(nodes), *found.unread]
    return ClusterStatus(
        API_VERSION,
        "ClusterStatus",
        server,
        not problems,
        nodes,
        controller,
        pools,
        problems,
        notes,
        here,
    )


# --- nodes ----------------------------------------------------------------------------------------


def _node(node: Obj, pods: list[Obj]) -> NodeStatus:
    meta, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    said = (meta.get("annotations") or {}).get(AGENT_ANNOTATION)
    facts = agents.read(said) if said else None
    conditions = [_condition(each) for each in status.get("conditions") or () if _of_network(each["type"])]
    cidrs = spec.get("podCIDRs") or [each for each in [spec.get("podCIDR")] if each]
    pod = pods[0] if pods else None
    state = pod_state(pod) if pod else ""
    problems = []
    if pod is not None and state != "Running":
        problems.append(f"the agent's pod {_name(pod)} is not well: {state}")
    elif pod is None and facts is None:
        problems.append("no agent of podlane runs there, and none has told of itself")
    if not cidrs:
        problems.append("no podCIDR yet")
    problems += [f"{each.type} {each.reason}: {each.message}" for each in conditions if each.bad]
    addresses = [each["address"] for each in status.get("addresses") or () if each["type"] == "InternalIP"]
    return NodeStatus(
        meta["name"],
        addresses,
        cidrs,
        facts,
        _name(pod) if pod else "",
        state,
        _restarts(pod) if pod else 0,
        conditions,
        problems,
    )


def _of_network(kind: str) -> bool:
    return kind == NETWORK_UNAVAILABLE or kind.startswith(OURS)


def _condition(told: Obj) -> Condition:
    """All that are of the network say with True that something is wrong."""
    status = told.get("status", "Unknown")
    return Condition(
        told["type"],
        status,
        told.get("reason") or "",
        told.get("message") or "",
        told.get("lastTransitionTime") or "",
        status == "True",
    )


def _rollouts(daemon_sets: Iterable[Obj]) -> Iterator[str]:
    for each in daemon_sets:
        status, meta = each.get("status") or {}, each["metadata"]
        wanted = int(status.get("desiredNumberScheduled") or 0)
        updated = int(status.get("updatedNumberScheduled") or 0)
        seen = status.get("observedGeneration") == meta.get("generation")
        if updated < wanted or not seen:
            there = updated if seen else 0
            yield f"{_name(each)} is being rolled out: {there} of {wanted} nodes have the new one"


def _differences(nodes: Iterable[NodeStatus]) -> Iterator[str]:
    """What agents do not agree on: while something is being rolled out that is so for a while."""
    for word, of in (
        ("versions", lambda facts: facts.version),
        ("backends", lambda facts: facts.backend),
        ("configurations", lambda facts: facts.config),
        ("families", lambda facts: "/".join(facts.families)),
    ):
        found: dict[str, list[str]] = {}
        for node in nodes:
            if node.agent is not None and of(node.agent):
                found.setdefault(of(node.agent), []).append(node.name)
        if len(found) > 1:
            parts = sorted(found.items(), key=lambda each: -len(each[1]))
            told = ", ".join(f"{value} on {_some(names)}" for value, names in parts)
            yield f"agents have different {word}: {told}"


def _some(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} nodes"


# --- controller and pools -------------------------------------------------------------------------


def _controller(found: Found, now: datetime) -> ControllerStatus:
    pods = {_name(pod): pod_state(pod) for pod in found.pods if _component(pod) == "controller"}
    lease = _lease(found)
    if lease is None:
        return ControllerStatus("", None, 0, pods)
    spec = lease.get("spec") or {}
    return ControllerStatus(
        spec.get("holderIdentity") or "",
        _age_s(spec.get("renewTime"), now),
        int(spec.get("leaseTransitions") or 0),
        pods,
    )


def _lease(found: Found) -> Obj | None:
    """Of several (the controller was moved to another namespace) the one renewed last."""
    return max(found.leases, key=lambda each: (each.get("spec") or {}).get("renewTime") or "", default=None)


def _of_controller(controller: ControllerStatus, found: Found) -> Iterator[str]:
    for name, state in controller.pods.items():
        if state not in ("Running", "Completed"):
            yield f"the controller's pod {name} is not well: {state}"
    lease = _lease(found)
    if lease is None:
        if controller.pods or found.pools:
            yield "no controller leads: there is no Lease podlane-controller"
        return
    duration_s = float((lease.get("spec") or {}).get("leaseDurationSeconds") or 0)
    stale_s = max(LEAST_STALE_S, STALE_LEASES * duration_s)
    if not controller.leader:
        yield "no controller leads: the Lease podlane-controller is not held"
    elif controller.renewed_ago_s is None or controller.renewed_ago_s > stale_s:
        ago = "never" if controller.renewed_ago_s is None else f"{controller.renewed_ago_s:.0f} s ago"
        yield f"no controller leads: {controller.leader} renewed its Lease {ago}"


def _pool(pool: Obj) -> PoolStatus:
    status = pool.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    assigned, available = (
        {str(family): int(status[what + family]) for family in Family if what + family in status}
        for what in ("assigned", "available")
    )
    ready = conditions.get("Ready", {}).get("status") == "True"
    return PoolStatus(pool["metadata"]["name"], ready, assigned, available)


def _of_pools(pools: Iterable[Obj], told: Iterable[PoolStatus]) -> Iterator[str]:
    for pool, each in zip(pools, told, strict=True):
        conditions = {c["type"]: c for c in (pool.get("status") or {}).get("conditions") or ()}
        if (ready := conditions.get("Ready")) is not None and ready.get("status") == "False":
            yield f"pool {each.name} cannot be used: {ready.get('reason')}: {ready.get('message')}"
        for family, left in each.available.items():
            if not left and each.assigned.get(family):
                yield f"pool {each.name} has no {family} address left"


def _of_here(here: Obj | None) -> Iterator[str]:
    if here is None:
        return
    node = here.get("node", "this node")
    if here.get("error"):
        yield f"{node}: {here['error']}"
        return
    for line in here.get("blockers") or ():
        yield f"{node}: {line}"
    for each in here.get("conflicts") or ():
        yield f"{node}: {each['what']}: {each['remedy']}"
    for each in here.get("failures") or ():
        yield f"{node}: refused: {each['table']} {each['key']}: {each['error']}"


# --- pods -----------------------------------------------------------------------------------------


def _component(pod: Obj) -> str:
    return str((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component", ""))


def _leaving(pod: Obj) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def _name(pod: Obj) -> str:
    return f"{pod['metadata'].get('namespace', '')}/{pod['metadata']['name']}"


def _containers(pod: Obj) -> list[Obj]:
    return (pod.get("status") or {}).get("containerStatuses") or []


def _restarts(pod: Obj) -> int:
    return sum(int(each.get("restartCount") or 0) for each in _containers(pod))


def pod_state(pod: Obj) -> str:
    """As kubectl's column STATUS: why a container waits, or the phase; NotReady for one that runs unready."""
    if _leaving(pod):
        return "Terminating"
    for each in _containers(pod):
        state = each.get("state") or {}
        for word in ("waiting", "terminated"):
            if reason := (state.get(word) or {}).get("reason"):
                return str(reason)
    phase = (pod.get("status") or {}).get("phase") or "Unknown"
    if phase == "Running" and not all(each.get("ready") for each in _containers(pod)):
        return "NotReady"
    return str(phase)


def _age_s(stamp: Any, now: datetime) -> float | None:
    try:
        then = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None
    return (now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds()
