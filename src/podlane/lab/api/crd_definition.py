"""A CustomResourceDefinition as it is written: what is wrong with it, its defaults and its status."""

from __future__ import annotations

from collections.abc import Iterator

from podlane.lab.api import metadata, structural
from podlane.lab.api.cells import at
from podlane.lab.api.status import Problem, invalid_value, required, shown
from podlane.lab.api.store import copied
from podlane.lab.api.validation_names import dns_label_1035
from podlane.lab.client import Obj

STORAGE = "customresourcedefinitions.apiextensions.k8s.io"
FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def establish(definition: Obj, old: Obj | None, now_s: float) -> None:
    """Defaults and the status that says it is served. In place; there is nothing to wait for here."""
    spec = definition.get("spec") or {}
    names = spec.get("names") or {}
    names.setdefault("singular", str(names.get("kind", "")).lower())
    names.setdefault("listKind", str(names.get("kind", "")) + "List")
    spec.setdefault("conversion", {"strategy": "None"})
    before = (old or {}).get("status") or {}
    stamp = metadata.timestamp(now_s)
    previous = {c["type"]: c for c in before.get("conditions") or ()}
    conditions = [
        previous.get("NamesAccepted")
        or _condition("NamesAccepted", "NoConflicts", "no conflicts found", stamp),
        previous.get("Established")
        or _condition("Established", "InitialNamesAccepted", "the initial names have been accepted", stamp),
    ]
    if "deletionTimestamp" in definition["metadata"]:
        why = "CustomResource deletion is in progress"
        conditions.append(
            previous.get("Terminating") or _condition("Terminating", "InstanceDeletionInProgress", why, stamp)
        )
    stored = next((v.get("name") for v in spec.get("versions") or () if v.get("storage")), "")
    earlier = [v for v in before.get("storedVersions") or () if v != stored]
    definition["status"] = {
        "acceptedNames": copied(names),
        "conditions": conditions,
        "storedVersions": [*earlier, stored],
    }
    if old is None:
        definition["metadata"]["finalizers"] = [
            *(f for f in metadata.finalizers(definition) if f != FINALIZER),
            FINALIZER,
        ]


def changes(new: Obj, old: Obj) -> Iterator[Problem]:
    """What may not change while objects of the kind are stored under it."""
    for path in ("spec.group", "spec.scope", "spec.names.plural", "spec.names.kind"):
        value, known = at(new, path), at(old, path)
        if value != known:
            yield invalid_value(path, value, "field is immutable")


def warnings(definition: Obj) -> list[str]:
    """What its author should know."""
    if not structural.uses((definition.get("spec") or {}).get("versions"), "x-kubernetes-validations"):
        return []
    return ["x-kubernetes-validations (CEL) is kept but not evaluated by this API server"]


def _condition(type_: str, reason: str, message: str, stamp: str) -> Obj:
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": stamp,
    }


def problems(definition: Obj) -> Iterator[Problem]:
    """What keeps a definition from being served (pkg/apis/apiextensions/validation)."""
    spec = definition.get("spec") or {}
    names = spec.get("names") or {}
    for key in ("plural", "kind"):
        if not names.get(key):
            yield required(f"spec.names.{key}")
    labels = [("spec.names.plural", names.get("plural")), ("spec.names.singular", names.get("singular"))]
    labels += [(f"spec.versions[{i}].name", v.get("name")) for i, v in enumerate(spec.get("versions") or ())]
    for path, label in labels:
        for why in dns_label_1035(label) if label else ():
            yield invalid_value(path, label, why)
    if not spec.get("group"):
        yield required("spec.group")
    elif "." not in spec["group"]:
        yield invalid_value("spec.group", spec["group"], "should be a domain with at least one dot")
    wanted = f"{names.get('plural', '')}.{spec.get('group', '')}"
    if definition["metadata"]["name"] != wanted:
        why = 'must be spec.names.plural+"."+spec.group'
        yield invalid_value("metadata.name", definition["metadata"]["name"], why)
    if spec.get("scope") not in ("Namespaced", "Cluster"):
        text = f"Unsupported value: {shown(spec.get('scope', ''))}: supported values: "
        yield Problem("spec.scope", "FieldValueNotSupported", text + '"Cluster", "Namespaced"')
    versions = spec.get("versions") or []
    if not versions:
        yield required("spec.versions", "must have at least one version")
    elif sum(bool(v.get("storage")) for v in versions) != 1:
        why = "must have exactly one version marked as storage version"
        yield invalid_value("spec.versions", [v.get("name") for v in versions], why)
    if len({v.get("name") for v in versions}) != len(versions):
        yield invalid_value(
            "spec.versions", [v.get("name") for v in versions], "must contain unique version names"
        )
    for i, version in enumerate(versions):
        path = f"spec.versions[{i}].schema.openAPIV3Schema"
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if schema is None:
            yield required(path, "schemas are required")
        elif not schema.get(structural.PRESERVE):
            yield from structural.faults(schema, path)
    if (spec.get("conversion") or {}).get("strategy", "None") != "None":
        text = 'Unsupported value: "Webhook": this API server converts by name only: supported values: "None"'
        yield Problem("spec.conversion.strategy", "FieldValueNotSupported", text)
