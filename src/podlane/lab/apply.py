"""Makes the API hold what manifests say, and takes it away again: the work of `podlane apply` and `delete`.

An object the API refuses is reported with its file, and the rest goes on. The annotation kubectl keeps the
last applied state in is kept here too, so that either may follow the other.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from podlane.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    LabError,
    NotFoundError,
    PodlaneError,
)
from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj
from podlane.lab.manifests import Manifest
from podlane.lab.three_way import LAST_APPLIED, merge

if TYPE_CHECKING:
    from podlane.lab.rest import Client

_ATTEMPTS = 5
_ESTABLISHED_S = 5.0
_POLL_S = 0.05
_GO_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_FIRST = ("Namespace", "CustomResourceDefinition")


class Applied(NamedTuple):
    """What became of one manifest.

    action: created, configured, unchanged, deleted, absent, or failed (then error says why, with the
    file). object: as the API holds it, None when failed or absent.
    """

    action: str
    manifest: Manifest
    object: Obj | None = None
    error: PodlaneError | None = None


class ManifestError(ApiError):
    """The API refused an object: what it said, with where the object is written."""

    exit_status = 2


Report = Callable[[Applied], None]


def apply_objects(
    client: Client, manifests: Sequence[Manifest], report: Report = lambda _: None
) -> list[Applied]:
    """Creates or updates each: namespaces first, then definitions of resources, then the rest in order.

    report is told of each as it is done. Raises LabError when the API cannot be reached.
    """
    order = {kind: i for i, kind in enumerate(_FIRST)}
    results: list[Applied] = []
    for manifest in sorted(manifests, key=lambda m: order.get(m.object["kind"], len(order))):
        try:
            result = _apply(client, manifest)
        except ApiError as error:
            result = Applied("failed", manifest, error=_located(manifest, error))
        results.append(result)
        report(result)
    return results


def delete_objects(
    client: Client,
    manifests: Sequence[Manifest],
    *,
    wait: bool = True,
    timeout_s: float = 60.0,
    report: Report = lambda _: None,
) -> list[Applied]:
    """Deletes each in reverse order of applying. wait: until they are gone, dependents in the background.

    Raises LabError when the API cannot be reached.
    """
    order = {kind: i for i, kind in enumerate(_FIRST)}
    ordered = sorted(manifests, key=lambda m: order.get(m.object["kind"], len(order)))
    results: list[Applied] = []
    for manifest in reversed(ordered):
        try:
            result = _delete(client, manifest)
        except NotFoundError:
            result = Applied("absent", manifest)
        except ApiError as error:
            result = Applied("failed", manifest, error=_located(manifest, error))
        results.append(result)
        report(result)
    if wait:
        deadline_s = time.monotonic() + timeout_s
        for i, result in enumerate(results):
            if result.action == "deleted" and not _gone(client, result, deadline_s):
                why = f"still there after {timeout_s:g} s; its finalizers or its pods keep it"
                kept = LabError(result.manifest.message(why))
                results[i] = result._replace(action="failed", error=kept)
                report(results[i])
    return results


def _located(manifest: Manifest, error: ApiError) -> ManifestError:
    text = manifest.message(str(error))
    return ManifestError(text, code=error.code, reason=error.reason, details=error.details)


def _place(client: Client, manifest: Manifest) -> tuple[Resource, str]:
    row = client.resource_of(manifest.object)
    namespace = manifest.object["metadata"].get("namespace") or ""
    return row, (namespace or client.namespace) if row.namespaced else ""


# --- apply ----------------------------------------------------------------------------------------


def annotated(obj: Obj) -> Obj:
    """A copy with the annotation that holds it, in kubectl's form to the byte: else it would find a change.

    Annotations are shown, characters escaped as Go's encoding/json does, a newline is at the end.
    """
    meta = dict(obj["metadata"])
    annotations = {k: v for k, v in (meta.get("annotations") or {}).items() if k != LAST_APPLIED}
    plain = {**obj, "metadata": {**meta, "annotations": annotations}}
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False, sort_keys=True) + "\n"
    text = text.translate(_GO_ESCAPES)
    return {**obj, "metadata": {**meta, "annotations": {**annotations, LAST_APPLIED: text}}}


def _last_applied(current: Obj) -> Obj:
    text = (current["metadata"].get("annotations") or {}).get(LAST_APPLIED)
    if text is None:
        return {}
    try:
        last = json.loads(text)
    except ValueError:
        return {}
    return last if isinstance(last, dict) else {}


def _apply(client: Client, manifest: Manifest) -> Applied:
    row, namespace = _place(client, manifest)
    obj = manifest.object
    if namespace:
        obj = {**obj, "metadata": {**obj["metadata"], "namespace": namespace}}
    if not obj["metadata"].get("name"):
        return Applied("created", manifest, client.create(row, obj, namespace))
    wanted = annotated(obj)
    for attempt in range(_ATTEMPTS):
        try:
            current = client.get(row, obj["metadata"]["name"], namespace)
        except NotFoundError:
            try:
                return _established(
                    client, row, Applied("created", manifest, client.create(row, wanted, namespace))
                )
            except AlreadyExistsError:
                continue
        merged = merge(_last_applied(current), wanted, current)
        merged["metadata"]["resourceVersion"] = current["metadata"].get("resourceVersion", "")
        if merged == current:
            return Applied("unchanged", manifest, current)
        try:
            stored = client.replace(row, merged)
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
            continue
        same = stored["metadata"].get("resourceVersion") == current["metadata"].get("resourceVersion")
        return _established(client, row, Applied("unchanged" if same else "configured", manifest, stored))
    raise ConflictError(f"{row.id} {obj['metadata']['name']!r} keeps being created and deleted by others")


def _established(client: Client, row: Resource, applied: Applied) -> Applied:
    """Waits until a definition's resources are served, so that the next object may be one of them."""
    if row.kind != "CustomResourceDefinition" or applied.object is None:
        return applied
    deadline_s = time.monotonic() + _ESTABLISHED_S
    name = applied.object["metadata"]["name"]
    while time.monotonic() < deadline_s:
        conditions = client.get(row, name).get("status", {}).get("conditions") or []
        if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
            break
        time.sleep(_POLL_S)
    return applied


# --- delete ---------------------------------------------------------------------------------------


def _delete(client: Client, manifest: Manifest) -> Applied:
    row, namespace = _place(client, manifest)
    name = manifest.object["metadata"].get("name")
    if not name:
        raise ApiError("metadata.name: is missing; generateName tells no object to delete", code=400)
    current = client.get(row, name, namespace)
    client.delete(row, name, namespace)
    return Applied("deleted", manifest, current)


def _gone(client: Client, deleted: Applied, deadline_s: float) -> bool:
    assert deleted.object is not None
    meta = deleted.object["metadata"]
    while True:
        try:
            row, namespace = _place(client, deleted.manifest)
            if client.get(row, meta["name"], namespace)["metadata"].get("uid") != meta.get("uid"):
                return True
        except NotFoundError:  # the object, or with it the definition of its kind
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
