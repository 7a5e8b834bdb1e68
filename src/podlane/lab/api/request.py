"""What a request asks for, read from its path, query, Accept header and body. Nothing here touches the store.

/api/v1/namespaces/NS/pods/NAME/log     core group            Target(group="", version="v1", ...)
/apis/GROUP/VERSION/...                 every other group
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml
from msgspec import Struct

from podlane.errors import ApiError, NotFoundError
from podlane.lab.api import protobuf, status
from podlane.lab.api.deletion import DeleteOptions
from podlane.lab.api.rbac import Attributes
from podlane.lab.client import Obj

BODY_LIMIT_BYTES = 3 * 1024 * 1024

_NAMESPACE_SUBRESOURCES = ("status", "finalize")


class Target(Struct, frozen=True):
    """namespace "": cluster-scoped or all namespaces. name "": the collection."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def target(parts: list[str]) -> Target:
    """parts: the path's segments, unquoted. Raises NotFoundError."""
    if parts[0] == "api" and len(parts) >= 3:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        raise NotFoundError("the server could not find the requested resource")
    namespace = ""
    if (
        rest[0] == "namespaces"
        and len(rest) >= 3
        and not (not group and len(rest) == 3 and rest[2] in _NAMESPACE_SUBRESOURCES)
    ):
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 3 or not all(rest):
        raise NotFoundError("the server could not find the requested resource")
    plural, name, subresource = [*rest, "", ""][:3]
    return Target(group, version, plural, namespace, name, subresource)


_VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}


def attributes(parts: list[str], method: str, query: Mapping[str, str]) -> Attributes | None:
    """What a request would do to which resource (apiserver/pkg/endpoints/request/requestinfo.go); None if its
    path is of none."""
    if parts[0] not in ("api", "apis"):
        return None
    try:
        where = target(parts)
    except NotFoundError:
        return None
    verb, name = _VERBS.get(method, method.lower()), where.name
    if verb == "get" and boolean(query, "watch"):
        verb = "watch"
    elif not name and verb in ("get", "delete"):
        verb = {"get": "list", "delete": "deletecollection"}[verb]
    if not name and verb in ("list", "watch", "deletecollection"):
        name = _only(query.get("fieldSelector", ""))
    namespace = where.name if where.plural == "namespaces" and not where.group else where.namespace
    return Attributes(
        verb=verb,
        group=where.group,
        resource=where.plural,
        subresource=where.subresource,
        namespace=namespace,
        name=name,
    )


def _only(field_selector: str) -> str:
    """The one name that a field selector leaves, "" if it leaves several."""
    for term in field_selector.split(","):
        key, _, value = term.partition("=")
        if key == "metadata.name":
            return value.removeprefix("=")
    return ""


class ListQuery(Struct, frozen=True, kw_only=True):
    """metav1.ListOptions. timeout_s None: as the server likes."""

    label_selector: str = ""
    field_selector: str = ""
    limit: int = 0
    continue_token: str = ""
    resource_version: str = ""
    resource_version_match: str = ""
    watch: bool = False
    bookmarks: bool = False
    send_initial_events: bool | None = None
    timeout_s: float | None = None


def list_query(query: Mapping[str, str]) -> ListQuery:
    """Raises ApiError(400) on a value of the wrong type."""
    initial = query.get("sendInitialEvents")
    timeout_s = integer(query, "timeoutSeconds")
    found = ListQuery(
        label_selector=query.get("labelSelector", ""),
        field_selector=query.get("fieldSelector", ""),
        limit=integer(query, "limit") or 0,
        continue_token=query.get("continue", ""),
        resource_version=query.get("resourceVersion", ""),
        resource_version_match=query.get("resourceVersionMatch", ""),
        watch=boolean(query, "watch"),
        bookmarks=boolean(query, "allowWatchBookmarks"),
        send_initial_events=None if initial is None else boolean(query, "sendInitialEvents"),
        timeout_s=None if timeout_s is None else float(timeout_s),
    )
    if found.resource_version and not found.resource_version.isdigit():
        why = "resourceVersion: Invalid value: " + json.dumps(found.resource_version)
        raise status.bad_request(why)
    return found


def integer(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None or text == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise status.bad_request(f"{name}: {text!r} is not an integer") from None


def boolean(query: Mapping[str, str], name: str) -> bool:
    """As Go reads query parameters: absent, "false" and "0" are false; present and empty is true."""
    text = query.get(name)
    if text is None:
        return False
    return text.lower() not in ("false", "0")


def dry_run(query: Mapping[str, str], given: Any = None) -> bool:
    """given: the body's dryRun list. Raises ApiError(422) on anything but All."""
    value = query.get("dryRun") or (given[0] if isinstance(given, list) and given else "")
    if value not in ("", "All"):
        message = f'dryRun: Unsupported value: {json.dumps(value)}: supported values: "All"'
        raise ApiError(message, code=422, reason="Invalid")
    return bool(value)


def field_validation(query: Mapping[str, str]) -> str:
    value = query.get("fieldValidation") or "Warn"
    if value not in ("Strict", "Warn", "Ignore"):
        message = (
            f"fieldValidation: Unsupported value: {json.dumps(value)}: "
            'supported values: "Ignore", "Strict", "Warn"'
        )
        raise ApiError(message, code=422, reason="Invalid")
    return value


# --- bodies ---------------------------------------------------------------------------------------


def media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def parse_body(body: bytes, content_type: str) -> Any:
    """The decoded body. Raises ApiError: 400, 415."""
    kind = media_type(content_type)
    if kind in ("", "application/json", "text/plain") or kind.endswith("+json"):
        return parse_json(body)
    if kind in ("application/yaml", "text/yaml", "application/x-yaml"):
        try:
            return yaml.load(body, Loader=YamlLoader)
        except yaml.YAMLError as error:
            raise status.bad_request(f"error converting YAML to JSON: {error}") from None
    if kind == protobuf.MEDIA_TYPE:
        return protobuf.decode(body)
    raise status.unsupported_media(
        f"the body of the request was in an unknown format ({kind}) - "
        "accepted media types include: application/json, application/yaml"
    )


def parse_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise status.bad_request(f"couldn't decode the body as JSON: {error}") from None


def duplicates(body: bytes) -> list[str]:
    """Names of fields that one JSON object has twice. Slow: only for those who ask (fieldValidation)."""
    twice: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                twice.append(key)
            found[key] = value
        return found

    try:
        json.loads(body, object_pairs_hook=pairs)
    except ValueError:
        return []
    return twice


class YamlLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """YAML as Kubernetes reads it: what looks like a date stays text."""


YamlLoader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for key, found in YamlLoader.yaml_implicit_resolvers.items()
}


def an_object(value: Any) -> Obj:
    """Raises ApiError(400)."""
    if not isinstance(value, dict):
        raise status.bad_request("the body of the request is not an object")
    return value


def delete_options(query: Mapping[str, str], body: Any) -> DeleteOptions:
    """From the query, or else from the body (metav1.DeleteOptions). Raises ApiError(400)."""
    given = an_object(body) if body else {}
    preconditions = an_object(given.get("preconditions") or {})
    grace_s = integer(query, "gracePeriodSeconds")
    if grace_s is None:
        grace_s = given.get("gracePeriodSeconds")
    if grace_s is not None and (isinstance(grace_s, bool) or not isinstance(grace_s, int)):
        raise status.bad_request("DeleteOptions: gracePeriodSeconds: expected an integer")
    propagation = query.get("propagationPolicy") or given.get("propagationPolicy") or ""
    orphan = given.get("orphanDependents")
    if "orphanDependents" in query:
        orphan = boolean(query, "orphanDependents")
    if orphan is not None and not propagation:
        propagation = "Orphan" if orphan else "Background"
    if propagation not in ("", "Orphan", "Background", "Foreground"):
        message = (
            f'DeleteOptions.meta.k8s.io "" is invalid: propagationPolicy: Unsupported value: '
            f'{json.dumps(propagation)}: supported values: "Background", "Foreground", "Orphan"'
        )
        raise ApiError(message, code=422, reason="Invalid")
    return DeleteOptions(
        grace_period_s=grace_s,
        uid=str(preconditions.get("uid") or ""),
        resource_version=str(preconditions.get("resourceVersion") or ""),
        propagation=propagation,
        dry_run=dry_run(query, given.get("dryRun")),
    )


# --- Accept ---------------------------------------------------------------------------------------


class Wanted(Struct, frozen=True):
    """form: object, table or metadata (PartialObjectMetadata). version: of meta.k8s.io. yaml: not JSON."""

    form: str = "object"
    version: str = "v1"
    yaml: bool = False


_FORMS = {
    "Table": "table",
    "PartialObjectMetadata": "metadata",
    "PartialObjectMetadataList": "metadata",
}


def ranges(accept: str) -> list[tuple[str, dict[str, str]]]:
    """(media type, parameters) in the order of the header."""
    found = []
    for clause in accept.split(","):
        kind, *parameters = (part.strip() for part in clause.split(";"))
        pairs = (p.partition("=") for p in parameters)
        found.append((kind.lower(), {k.strip().lower(): v.strip() for k, _, v in pairs}))
    return found


def wanted(accept: str) -> Wanted:
    """The first form of the header that is served; plain JSON when there is none (protobuf, say)."""
    for kind, parameters in ranges(accept):
        if kind not in ("application/json", "application/yaml", "*/*", "application/*"):
            continue
        form = "object"
        if "as" in parameters:
            form = _FORMS.get(parameters["as"], "")
            if not form or parameters.get("g", "meta.k8s.io") != "meta.k8s.io":
                continue
        version = parameters.get("v", "v1")
        if version in ("v1", "v1beta1"):
            return Wanted(form, version, kind == "application/yaml")
    return Wanted()
