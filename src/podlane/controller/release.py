"""What podlane leaves in other people's objects, taken back: for a cluster that it is removed from.

    Service    addresses of pools, conditions of who answers, our annotations, and the finalizer last: without
               a controller nobody would ever take it away, and the Service could not be deleted
    Node       what agents tell each other by annotation, and conditions of ours
    Lease      the controllers'

What users wrote (wishes for addresses, weights, numbers of autonomous systems) stays. Agents and controllers
must be gone: they would write it all again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from podlane.compile.bgp import AS_ANNOTATION
from podlane.controller.client import ApiClient, Obj
from podlane.controller.leader import LEASES, NAME
from podlane.controller.meta import annotations_of
from podlane.errors import ConflictError, NotFoundError, PodlaneError
from podlane.model import pools
from podlane.model.agents import NETWORK_UNAVAILABLE, REASONS

OURS: Final = "podlane.dev/"
OF_SERVICES: Final = (pools.ALLOCATED_FROM, pools.ANNOUNCING_NODES, pools.ANNOUNCED_BY)
OF_USERS: Final = frozenset({AS_ANNOTATION})
"""What people write at Nodes. All other annotations of ours there are the agents'."""
_ATTEMPTS: Final = 5

Say = Callable[[str], None]


async def release(client: ApiClient, lease_namespace: str, say: Say) -> None:
    """say: called with a sentence for every object. It may be run any number of times. Raises ApiError, and
    PodlaneError for an object that somebody else writes again and again."""
    for service in (await client.list("services"))[0]:
        if _marked(service):
            await _each(client, "services", service, _release_service)
            say(f"service {service['metadata']['namespace']}/{service['metadata']['name']}")
    for node in (await client.list("nodes"))[0]:
        if _told(node):
            await _each(client, "nodes", node, _release_node)
            say(f"node {node['metadata']['name']}")
    try:
        await client.delete(LEASES, NAME, lease_namespace)
        say(f"lease {lease_namespace}/{NAME}")
    except NotFoundError:
        pass


async def _each(client: ApiClient, resource: str, obj: Obj, act: Callable[[ApiClient, Obj], object]) -> None:
    """act on obj as it is; once more when somebody has written to it meanwhile."""
    meta = obj["metadata"]
    for _ in range(_ATTEMPTS):
        try:
            await act(client, obj)  # type: ignore[misc]
            return
        except ConflictError:
            obj = await client.get(resource, meta["name"], meta.get("namespace", ""))
        except NotFoundError:
            return
    raise PodlaneError(
        f"{resource} {meta['name']} is written by somebody else again and again; is an agent left?"
    )


def _marked(service: Obj) -> bool:
    return not annotations_of(service).keys().isdisjoint(OF_SERVICES) or bool(_conditions(service)[1])


def _told(node: Obj) -> bool:
    return bool(_of_agents(node)) or bool(_conditions(node)[1])


def _of_agents(node: Obj) -> list[str]:
    return [each for each in annotations_of(node) if each.startswith(OURS) and each not in OF_USERS]


def _conditions(obj: Obj) -> tuple[list[Obj], list[Obj]]:
    """Those of others, and ours."""
    found = (obj.get("status") or {}).get("conditions") or []
    ours = [each for each in found if _is_ours(each)]
    return [each for each in found if each not in ours], ours


def _is_ours(condition: Obj) -> bool:
    kind = condition.get("type") or ""
    return kind.startswith(OURS) or (kind == NETWORK_UNAVAILABLE and condition.get("reason") in REASONS)


async def _release_service(client: ApiClient, service: Obj) -> None:
    status, (others, ours) = service.get("status") or {}, _conditions(service)
    given = pools.ALLOCATED_FROM in annotations_of(service)
    patch: Obj = {"conditions": others or None} if ours else {}
    if given and (status.get("loadBalancer") or {}).get("ingress"):
        patch["loadBalancer"] = {"ingress": None}
    if patch:
        service = await _patch(client, "services", service, {"status": patch}, "status")
    meta: Obj = {"annotations": dict.fromkeys(OF_SERVICES)}
    held = service["metadata"].get("finalizers") or []
    if given and pools.FINALIZER in held:
        meta["finalizers"] = [each for each in held if each != pools.FINALIZER]
    await _patch(client, "services", service, {"metadata": meta})


async def _release_node(client: ApiClient, node: Obj) -> None:
    others, ours = _conditions(node)
    if ours:
        node = await _patch(client, "nodes", node, {"status": {"conditions": others}}, "status")
    if found := _of_agents(node):
        await _patch(client, "nodes", node, {"metadata": {"annotations": dict.fromkeys(found)}})


async def _patch(client: ApiClient, resource: str, obj: Obj, patch: Obj, subresource: str = "") -> Obj:
    """Of obj as it was read."""
    meta = obj["metadata"]
    as_read = {"resourceVersion": meta["resourceVersion"], "uid": meta["uid"]}
    guarded = {**patch, "metadata": {**patch.get("metadata", {}), **as_read}}
    return await client.patch(
        resource, meta["name"], meta.get("namespace", ""), guarded, subresource=subresource
    )
