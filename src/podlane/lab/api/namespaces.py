"""Namespaces: what may be made in them, what holds them, and which ones nobody may delete."""

from __future__ import annotations

from podlane.lab.api import status
from podlane.lab.api.resources import BUILTIN, Resource
from podlane.lab.api.store import Store
from podlane.lab.client import Obj

NAME_LABEL = "kubernetes.io/metadata.name"
FINALIZER = "kubernetes"
BOOTSTRAP = ("default", "kube-system", "kube-public", "kube-node-lease")
_PERMANENT = ("default", "kube-system", "kube-public")

_RESOURCE = next(r for r in BUILTIN if r.storage == "namespaces")


def check_open(store: Store, resource: Resource, namespace: str, name: str) -> None:
    """Something may be created there. Raises NotFoundError, or ApiError(403) while it terminates."""
    record = store.get("namespaces", "", namespace)
    if record is None:
        raise status.not_found(_RESOURCE, namespace)
    if "deletionTimestamp" in record.obj["metadata"]:
        why = f"unable to create new content in namespace {namespace} because it is being terminated"
        cause = {
            "reason": "NamespaceTerminating",
            "message": f"namespace {namespace} is being terminated",
            "field": "metadata.namespace",
        }
        raise status.forbidden(resource, name, why, causes=[cause])


def check_deletable(resource: Resource, name: str) -> None:
    if resource.storage == "namespaces" and name in _PERMANENT:
        raise status.forbidden(resource, name, "this namespace may not be deleted")


def prepare(resource: Resource, new: Obj, old: Obj | None, subresource: str = "") -> None:
    """The default label, and spec.finalizers, which only /finalize changes (KEP-2161 for the label)."""
    if resource.storage != "namespaces":
        return
    labels = new["metadata"].get("labels") or {}
    new["metadata"]["labels"] = {**labels, NAME_LABEL: new["metadata"]["name"]}
    if old is None:
        given = (new.get("spec") or {}).get("finalizers") or []
        new["spec"] = {"finalizers": [*given, *([] if FINALIZER in given else [FINALIZER])]}
        new["status"] = {"phase": "Active"}
    elif subresource != "finalize":
        if "spec" in old:
            new["spec"] = old["spec"]
        else:
            new.pop("spec", None)


def bootstrap_objects() -> list[Obj]:
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in BOOTSTRAP]
