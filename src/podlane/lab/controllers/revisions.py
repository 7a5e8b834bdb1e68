"""ControllerRevisions: the history of a DaemonSet's or StatefulSet's template.

Each version of spec.template is one ControllerRevision owned by the workload; its data is the patch that
`kubectl rollout undo` applies. Pods carry the revision's hash in controller-revision-hash.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

from podlane.errors import AlreadyExistsError, ConflictError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, ownership
from podlane.lab.controllers.context import Context

REVISIONS = "controllerrevisions.apps"
HASH_LABEL = "controller-revision-hash"


class History(NamedTuple):
    """current: of spec.template as it is now. old: the others, oldest first."""

    current: Obj
    old: list[Obj]

    @property
    def hash(self) -> str:
        return hash_of(self.current)


def hash_of(revision: Obj) -> str:
    """The value pods of this revision carry."""
    return facts.labels_of(revision).get(HASH_LABEL, "")


def data_of(owner: Obj) -> Obj:
    return {"spec": {"template": {**copy.deepcopy(owner["spec"]["template"]), "$patch": "replace"}}}


async def history(context: Context, owner: Obj, kind: str, owner_resource: str) -> History:
    """The owner's revisions, with one made for the present template if there is none."""
    selector = ownership.selector_of(owner)
    found = await ownership.claim(context, owner, kind, owner_resource, REVISIONS, selector)
    found.sort(key=lambda r: (r["revision"], facts.created_s(r), r["metadata"]["name"]))
    wanted = data_of(owner)
    newest = found[-1]["revision"] if found else 0
    current = next((r for r in reversed(found) if r.get("data") == wanted), None)
    if current is None:
        current = await _create(context, owner, kind, wanted, newest + 1)
    elif current["revision"] < newest:  # gone back to: it is the newest again
        current = await context.update(REVISIONS, {**current, "revision": newest + 1})
    uid = current["metadata"]["uid"]
    return History(current, [r for r in found if r["metadata"]["uid"] != uid])


async def _create(context: Context, owner: Obj, kind: str, data: Obj, number: int) -> Obj:
    meta = owner["metadata"]
    collisions = (owner.get("status") or {}).get("collisionCount") or 0
    digest = ownership.stable_hash([data, collisions])
    body: Obj = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"{meta['name']}-{digest}",
            "namespace": meta["namespace"],
            "labels": {
                **((owner["spec"]["template"].get("metadata") or {}).get("labels") or {}),
                HASH_LABEL: digest,
            },
            "annotations": dict(facts.annotations_of(owner)),
            "ownerReferences": [ownership.reference(owner, kind)],
        },
        "data": data,
        "revision": number,
    }
    try:
        return await context.create(REVISIONS, body, meta["namespace"])
    except AlreadyExistsError:
        found = await context.client.get(REVISIONS, body["metadata"]["name"], meta["namespace"])
        ref = ownership.controller_of(found)
        if ref is None or ref["uid"] != meta["uid"] or found.get("data") != data:
            raise ConflictError(f"controllerrevisions {body['metadata']['name']} is another's") from None
        return context.informer(REVISIONS).wrote(found)


async def forget(context: Context, owner: Obj, past: History, used: Iterable[str]) -> None:
    """Deletes the oldest revisions beyond revisionHistoryLimit that no pod carries."""
    alive = set(used)
    idle = [r for r in past.old if hash_of(r) not in alive]
    limit = owner["spec"].get("revisionHistoryLimit", 10)
    for each in idle[: max(0, len(idle) - limit)]:
        await context.delete(REVISIONS, each)


def template_of(revision: Obj) -> Obj:
    """The pod template a revision keeps."""
    return {k: v for k, v in revision["data"]["spec"]["template"].items() if k != "$patch"}
