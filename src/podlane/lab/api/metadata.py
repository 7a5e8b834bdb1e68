"""What the API server itself writes into metadata: names, uids, times, and what may never change."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Sequence

from podlane.lab.api import status
from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_GENERATED = 5
_NAME_LIMIT = 63

_IMMUTABLE = (
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "name",
    "namespace",
    "uid",
)
_SERVER_ONLY = ("managedFields", "selfLink")
_EMPTY_IS_ABSENT = ("annotations", "finalizers", "labels", "ownerReferences", "generateName")


def timestamp(now_s: float | None = None) -> str:
    """metav1.Time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))


def random_suffix(length: int = _GENERATED) -> str:
    """Without vowels and look-alikes, as Kubernetes' names are."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def generated(base: str) -> str:
    return base[: _NAME_LIMIT - _GENERATED] + random_suffix()


def check_type(resource: Resource, obj: Obj) -> None:
    """apiVersion and kind, where given, must be the path's; they are set. Raises ApiError(400)."""
    version, kind = obj.get("apiVersion"), obj.get("kind")
    if version and version != resource.api_version:
        raise status.bad_request(
            f"the API version in the data ({version}) does not match the expected API version "
            f"({resource.api_version})"
        )
    if kind and kind != resource.kind:
        raise status.bad_request(
            f"{kind} in version {resource.version!r} cannot be handled as a {resource.kind}: "
            f"the kind in the data does not match the kind of {resource.id}"
        )
    obj["apiVersion"], obj["kind"] = resource.api_version, resource.kind


def check_place(resource: Resource, namespace: str, name: str, obj: Obj) -> Obj:
    """metadata, with the path's namespace and name. Raises ApiError(400) when the body says otherwise."""
    metadata = obj.get("metadata")
    if metadata is None:
        metadata = obj["metadata"] = {}
    if not isinstance(metadata, dict):
        raise status.bad_request(f"{resource.kind}: metadata: expected an object")
    for key in ("name", "namespace", "generateName", "uid", "resourceVersion"):
        if metadata.get(key) is not None and not isinstance(metadata[key], str):
            raise status.bad_request(f"{resource.kind}: metadata.{key}: expected a string")
    if resource.namespaced:
        if metadata.get("namespace") and namespace and metadata["namespace"] != namespace:
            raise status.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        metadata["namespace"] = namespace or metadata.get("namespace") or ""
        if not metadata["namespace"]:
            raise status.bad_request("an empty namespace may not be set during creation")
    elif metadata.get("namespace"):
        raise status.bad_request("namespace is not allowed on this type")
    else:
        metadata.pop("namespace", None)
    if name and metadata.get("name") and metadata["name"] != name:
        raise status.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    if name:
        metadata["name"] = name
    return metadata


def fill_new(resource: Resource, obj: Obj, now_s: float) -> None:
    """What an object gets at birth. Raises InvalidError (no name), ApiError(400) (resourceVersion)."""
    metadata: Obj = obj["metadata"]
    if metadata.get("resourceVersion"):
        raise status.bad_request("resourceVersion should not be set on objects to be created")
    if not metadata.get("name"):
        base = metadata.get("generateName")
        if not base:
            problem = status.required("metadata.name", "name or generateName is required")
            raise status.invalid(resource, "", [problem])
        metadata["name"] = generated(base)
    for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "generation", *_SERVER_ONLY):
        metadata.pop(key, None)
    drop_empty(metadata)
    metadata["uid"] = str(uuid.uuid4())
    metadata["creationTimestamp"] = timestamp(now_s)


def keep_old(new: Obj, old: Obj) -> None:
    """What an update may not change comes from the old metadata."""
    metadata, before = new["metadata"], old["metadata"]
    for key in _SERVER_ONLY:
        metadata.pop(key, None)
    for key in _IMMUTABLE:
        if key in before:
            metadata[key] = before[key]
        else:
            metadata.pop(key, None)
    drop_empty(metadata)


def drop_empty(metadata: Obj) -> None:
    """Empty maps and lists are absent, as omitempty has it: an update with them is no change."""
    for key in _EMPTY_IS_ABSENT:
        if key in metadata and not metadata[key]:
            del metadata[key]


def same(new: Obj, old: Obj) -> bool:
    """Nothing but the resourceVersion differs."""
    if new.keys() != old.keys() or any(new[k] != old[k] for k in new if k != "metadata"):
        return False
    return {**new["metadata"], "resourceVersion": ""} == {**old["metadata"], "resourceVersion": ""}


def spec_changed(new: Obj, old: Obj) -> bool:
    """Something beyond metadata and status differs: what counts as a new generation."""
    ignored = ("metadata", "status")
    return any(new.get(k) != old.get(k) for k in (new.keys() | old.keys()) if k not in ignored)


def finalizers(obj: Obj) -> Sequence[str]:
    found: Sequence[str] = obj["metadata"].get("finalizers") or ()
    return found
