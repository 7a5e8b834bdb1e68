# ruff: noqa: E501
"""Whatever an object holds: it is refused in words or accepted, never a crash, and accepted twice alike."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from podlane.lab.api import allocation_fields, defaults, schema, validation
from podlane.lab.api.schema import Form, Type
from podlane.lab.api.validation_decode import BadRequestError, decode
from podlane.lab.three_way import merge

KINDS = [
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "Endpoints"),
    ("v1", "Node"),
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("v1", "Namespace"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "ReplicationController"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "StatefulSet"),
    ("batch/v1", "Job"),
    ("batch/v1", "CronJob"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "ServiceCIDR"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
]
WORDS = st.sampled_from(
    ["", "a", "A_", "web", "x y", "10.0.0.1", "fd00::1", "10.0.0.0/8", "10.1.0.0/16", "None", "In", "Exists", "/",
     "TCP", "ClusterIP", "NodePort", "ExternalName", "LoadBalancer", "IPv4", "IPv6", "Always", "Recreate", "50%", "*.a"]
)  # fmt: skip
NUMBERS = st.sampled_from([0, 1, -1, 80, 65536, 30000])
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "string": WORDS,
    "bytes": st.sampled_from(["", "eA=="]),
    "boolean": st.booleans(),
    "number": NUMBERS,
    "int32": NUMBERS,
    "int64": NUMBERS,
    "time": st.just("2024-01-01T00:00:00Z"),
    "microtime": st.just("2024-01-01T00:00:00.000000Z"),
    "int-or-string": st.one_of(NUMBERS, WORDS),
    "quantity": st.sampled_from(["1", "500m", "1Gi", "-1", 2]),
    "any": st.just({}),
}


def values(form: Form, depth: int) -> st.SearchStrategy[Any]:
    if form.form == "list":
        return st.lists(values(form.element, depth), max_size=2)
    if form.form == "map":
        return st.dictionaries(WORDS, values(form.element, depth), max_size=2)
    if form.form == "ref":
        return structs(schema.type_named(str(form.of)), depth - 1)
    return PLAIN[form.form]


@st.composite
def structs(draw: st.DrawFn, kind: Type, depth: int) -> dict[str, Any]:
    """Some fields of a type, each of its own form; fewer the deeper."""
    if depth <= 0 or not kind.fields:
        return {}
    chosen = draw(st.lists(st.sampled_from(sorted(kind.fields)), max_size=4, unique=True))
    often = [k for k in ("spec", "template", "containers", "ports", "endpoints") if k in kind.fields]
    return {k: draw(values(kind.fields[k], depth)) for k in dict.fromkeys([*often, *chosen])}


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    api_version, kind = draw(st.sampled_from(KINDS))
    known = schema.type_of(api_version, kind)
    assert known is not None
    body = draw(structs(known, 7))
    return {**body, "apiVersion": api_version, "kind": kind, "metadata": {"name": draw(WORDS)}}


def prepared(obj: dict[str, Any]) -> dict[str, Any]:
    decoded, unknown = decode(obj)
    assert unknown == []
    defaults.apply(decoded)
    if decoded["kind"] == "Service":
        allocation_fields.prepare_create(decoded)
    return decoded


LOOSE = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@given(objects())
@LOOSE
def test_any_object_of_a_kind_is_judged(obj: dict[str, Any]) -> None:
    before = copy.deepcopy(obj)
    found = prepared(obj)
    assert obj == before
    errors = validation.validate_create(found)
    assert [str(e) for e in errors] == [str(e) for e in validation.validate_create(found)]
    assert prepared(found) == found


@given(objects(), objects())
@LOOSE
def test_any_update_is_judged(new: dict[str, Any], old: dict[str, Any]) -> None:
    new = {**new, "apiVersion": old["apiVersion"], "kind": old["kind"]}
    try:
        after, before = prepared_loosely(new), prepared_loosely(old)
    except BadRequestError:
        return
    if after["kind"] == "Service":
        allocation_fields.prepare_update(after, before)
    validation.validate_update(after, before)
    validation.validate_update(after, before, "status")
    assert not validation.validate_update(before, before)
    assert merge(before, after, before).keys() >= {k for k, v in after.items() if v is not None}


def prepared_loosely(obj: dict[str, Any]) -> dict[str, Any]:
    decoded, _ = decode(obj)
    defaults.apply(decoded)
    return decoded


@given(objects(), st.data())
@LOOSE
def test_a_value_of_a_wrong_type_is_a_bad_request(obj: dict[str, Any], data: st.DataObject) -> None:
    """Anything put anywhere: decoded, or refused as a bad request."""
    at: Any = obj
    while isinstance(at, dict) and at:
        key = data.draw(st.sampled_from(sorted(at)))
        if key in ("apiVersion", "kind") or data.draw(st.booleans()):
            break
        if not isinstance(at[key], dict):
            at[key] = data.draw(st.sampled_from([None, True, 1.5, 1 << 70, "x", [], [None], {}, {"x": None}]))
            break
        at = at[key]
    try:
        found, _ = decode(obj)
    except BadRequestError:
        return
    defaults.apply(found)
    validation.validate_create(found)
