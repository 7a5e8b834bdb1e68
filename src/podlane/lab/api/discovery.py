"""Discovery: which groups, versions and resources there are, one by one or in one document (KEP-3352)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from podlane.errors import NotFoundError
from podlane.lab.api.request import ranges
from podlane.lab.api.resources import Catalog, Resource
from podlane.lab.client import Obj

GIT_VERSION = "v1.36.0+podlane"
VERSION: Obj = {
    "major": "1",
    "minor": "36",
    "gitVersion": GIT_VERSION,
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "cpython",
    "platform": "linux",
}

# What a subresource speaks when it is not its resource's own kind, and its verbs.
_SUBRESOURCES: dict[str, tuple[tuple[str, str, str] | None, tuple[str, ...]]] = {
    "status": (None, ("get", "patch", "update")),
    "finalize": (None, ("update",)),
    "scale": (("autoscaling", "v1", "Scale"), ("get", "patch", "update")),
    "binding": (("", "v1", "Binding"), ("create",)),
    "eviction": (("policy", "v1", "Eviction"), ("create",)),
    "token": (("authentication.k8s.io", "v1", "TokenRequest"), ("create",)),
    "log": (None, ("get",)),
    "exec": (("", "v1", "PodExecOptions"), ("create", "get")),
    "attach": (("", "v1", "PodAttachOptions"), ("create", "get")),
    "portforward": (("", "v1", "PodPortForwardOptions"), ("create", "get")),
}


def aggregated_version(accept: str) -> str | None:
    """ "v2" or "v2beta1" when the client asked for aggregated discovery; None for the old form."""
    for kind, parameters in ranges(accept):
        if kind not in ("application/json", "*/*"):
            continue
        if parameters.get("as") == "APIGroupDiscoveryList":
            if parameters.get("v") in ("v2", "v2beta1"):
                return parameters["v"]
        elif "as" not in parameters:
            return None
    return None


def aggregated(catalog: Catalog, version: str, *, core: bool) -> Obj:
    """Of /api (core) or /apis."""
    items = [
        {
            "metadata": {"name": group, "creationTimestamp": None},
            "versions": [
                {
                    "version": name,
                    "freshness": "Current",
                    "resources": [_aggregated_resource(r) for r in _sorted(rows)],
                }
                for name, rows in versions.items()
            ],
        }
        for group, versions in catalog.groups().items()
        if (group == "") is core
    ]
    kind, api_version = "APIGroupDiscoveryList", f"apidiscovery.k8s.io/{version}"
    return {"kind": kind, "apiVersion": api_version, "metadata": {}, "items": items}


def content_type(version: str) -> str:
    return f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"


def etag(catalog: Catalog) -> str:
    """Changes when custom resources come or go."""
    names = "\n".join(sorted(f"{r.api_version}/{r.plural}/{r.subresources}" for r in catalog))
    return '"' + hashlib.sha256(names.encode()).hexdigest().upper() + '"'


def _sorted(rows: Iterable[Resource]) -> list[Resource]:
    return sorted(rows, key=lambda r: r.plural)


def _aggregated_resource(row: Resource) -> Obj:
    found: Obj = {
        "resource": row.plural,
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
        "scope": "Namespaced" if row.namespaced else "Cluster",
        "singularResource": row.singular,
        "verbs": list(row.verbs),
    }
    if row.short_names:
        found["shortNames"] = list(row.short_names)
    if row.categories:
        found["categories"] = list(row.categories)
    if row.subresources:
        found["subresources"] = []
        for name in sorted(row.subresources):
            of, verbs = _SUBRESOURCES[name]
            group, version, kind = of or (row.group, row.version, row.kind)
            response = {"group": group, "version": version, "kind": kind}
            found["subresources"].append(
                {"subresource": name, "responseKind": response, "verbs": list(verbs)}
            )
    return found


def core_versions(host: str) -> Obj:
    """Of /api."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": host}],
    }


def group(catalog: Catalog, name: str) -> Obj:
    """Of /apis/GROUP. Raises NotFoundError."""
    versions = catalog.groups().get(name) if name else None
    if not versions:
        raise NotFoundError("the server could not find the requested resource")
    listed = [{"groupVersion": f"{name}/{v}", "version": v} for v in versions]
    return {
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": name,
        "versions": listed,
        "preferredVersion": listed[0],
    }


def groups(catalog: Catalog) -> Obj:
    """Of /apis."""
    found = [group(catalog, name) for name in catalog.groups() if name]
    for item in found:
        del item["kind"], item["apiVersion"]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def resources(catalog: Catalog, group_name: str, version: str) -> Obj:
    """Of /api/v1 and /apis/GROUP/VERSION. Raises NotFoundError."""
    rows = catalog.groups().get(group_name, {}).get(version)
    if not rows:
        raise NotFoundError("the server could not find the requested resource")
    listed = []
    for row in _sorted(rows):
        entry: Obj = {
            "name": row.plural,
            "singularName": row.singular,
            "namespaced": row.namespaced,
            "kind": row.kind,
            "verbs": list(row.verbs),
        }
        if row.short_names:
            entry["shortNames"] = list(row.short_names)
        if row.categories:
            entry["categories"] = list(row.categories)
        listed.append(entry)
        for name in sorted(row.subresources):
            of, verbs = _SUBRESOURCES[name]
            sub: Obj = {
                "name": f"{row.plural}/{name}",
                "singularName": "",
                "namespaced": row.namespaced,
                "kind": of[2] if of else row.kind,
                "verbs": list(verbs),
            }
            if of:
                sub["group"], sub["version"] = of[0], of[1]
            listed.append(sub)
    group_version = f"{group_name}/{version}" if group_name else version
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": listed,
    }
