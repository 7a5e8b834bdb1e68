"""A container's environment, from the pod's words. Pure.

Order and expansion are the kubelet's: variables of services first, then envFrom in order, then env in order;
`$(NAME)` in a value, a command or an argument stands for a variable that is known by then, `$$` for `$`
(k8s.io/kubernetes third_party/forked/golang/expansion).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from podlane.lab.runtime import quantities
from podlane.model.addresses import address

Obj = dict[str, Any]
Objects = Mapping[tuple[str, str], Obj | None]
"""(resource, name) in the pod's namespace -> the ConfigMap or Secret; None: it is not there"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\)|\()")
_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


class ConfigMissing(Exception):
    """What a container's configuration names is not there. reason: as container statuses say it."""

    reason = "CreateContainerConfigError"


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` by its value; unknown ones stay as they are."""

    def one(match: re.Match[str]) -> str:
        whole = match[0]
        if whole == "$$":
            return "$"
        name = match[1]
        return whole if name is None else variables.get(name, whole)

    return _REFERENCE.sub(one, text)


def references(pod: Obj) -> set[tuple[str, str]]:
    """The ConfigMaps and Secrets that environments of the pod name, as (resource, name)."""
    found: set[tuple[str, str]] = set()
    for container in containers(pod):
        for source in container.get("envFrom") or ():
            for key, resource in (("configMapRef", "configmaps"), ("secretRef", "secrets")):
                if reference := source.get(key):
                    found.add((resource, reference.get("name", "")))
        for variable in container.get("env") or ():
            origin = variable.get("valueFrom") or {}
            for key, resource in (("configMapKeyRef", "configmaps"), ("secretKeyRef", "secrets")):
                if reference := origin.get(key):
                    found.add((resource, reference.get("name", "")))
    return found


def containers(pod: Obj) -> Iterator[Obj]:
    spec = pod["spec"]
    for key in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(key) or ()


def environment(
    container: Obj, pod: Obj, objects: Objects, services: Iterable[Obj], hostname: str
) -> dict[str, str]:
    """services: those of the pod's namespace and default/kubernetes. Raises ConfigMissing."""
    values: dict[str, str] = {"PATH": PATH, "HOSTNAME": hostname}
    links = pod["spec"].get("enableServiceLinks", True)
    values.update(service_variables(services, pod["metadata"]["namespace"], links=links))
    namespace = pod["metadata"]["namespace"]
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix") or ""
        for name, value in _all_of(source, objects, namespace).items():
            if _NAME.fullmatch(prefix + name):
                values[prefix + name] = value
    for variable in container.get("env") or ():
        name = variable["name"]
        if (origin := variable.get("valueFrom")) is not None:
            found = _value_from(origin, container, pod, objects)
            if found is not None:
                values[name] = found
        else:
            values[name] = expand(variable.get("value") or "", values)
    return values


def _all_of(source: Obj, objects: Objects, namespace: str) -> dict[str, str]:
    for key, resource, noun in (
        ("configMapRef", "configmaps", "configmap"),
        ("secretRef", "secrets", "secret"),
    ):
        if (reference := source.get(key)) is None:
            continue
        obj = objects.get((resource, reference.get("name", "")))
        if obj is None:
            if reference.get("optional"):
                return {}
            raise ConfigMissing(f'{noun} "{reference.get("name", "")}" not found')
        return {k: v.decode(errors="replace") for k, v in contents(resource, obj).items()}
    return {}


def contents(resource: str, obj: Obj) -> dict[str, bytes]:
    """The keys of one of `configmaps` or `secrets` as bytes."""
    if resource == "secrets":
        found = {k: base64.b64decode(v or "") for k, v in (obj.get("data") or {}).items()}
        found.update({k: v.encode() for k, v in (obj.get("stringData") or {}).items()})
        return found
    found = {k: (v or "").encode() for k, v in (obj.get("data") or {}).items()}
    found.update({k: base64.b64decode(v or "") for k, v in (obj.get("binaryData") or {}).items()})
    return found


def _value_from(origin: Obj, container: Obj, pod: Obj, objects: Objects) -> str | None:
    if reference := origin.get("fieldRef"):
        return field(reference["fieldPath"], pod)
    if reference := origin.get("resourceFieldRef"):
        return resource_field(reference, container, pod)
    namespace = pod["metadata"]["namespace"]
    for key, resource, noun in (
        ("configMapKeyRef", "configmaps", "configmap"),
        ("secretKeyRef", "secrets", "secret"),
    ):
        if (reference := origin.get(key)) is None:
            continue
        name = reference.get("name", "")
        obj = objects.get((resource, name))
        if obj is None:
            if reference.get("optional"):
                return None
            raise ConfigMissing(f'{noun} "{name}" not found')
        data = contents(resource, obj)
        if reference["key"] not in data:
            if reference.get("optional"):
                return None
            kind = "ConfigMap" if resource == "configmaps" else "Secret"
            raise ConfigMissing(f"couldn't find key {reference['key']} in {kind} {namespace}/{name}")
        return data[reference["key"]].decode(errors="replace")
    return None


def field(path: str, pod: Obj) -> str:
    """The downward API's fieldRef; "" for what the pod does not have (yet). Raises ConfigMissing."""
    meta, status, spec = pod["metadata"], pod.get("status") or {}, pod["spec"]
    key = re.fullmatch(r"metadata\.(labels|annotations)\['(.*)'\]", path)
    if key:
        return str((meta.get(key[1]) or {}).get(key[2], ""))
    plain: dict[str, Any] = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta.get("uid", ""),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.hostIP": status.get("hostIP", ""),
        "status.hostIPs": ",".join(e["ip"] for e in status.get("hostIPs") or ()),
        "status.podIP": status.get("podIP", ""),
        "status.podIPs": ",".join(e["ip"] for e in status.get("podIPs") or ()),
    }
    if path in plain:
        return str(plain[path])
    if path in ("metadata.labels", "metadata.annotations"):
        items = sorted((meta.get(path.partition(".")[2]) or {}).items())
        return "\n".join(f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in items)
    raise ConfigMissing(f"fieldPath {path!r} is not one of the downward API")


def resource_field(reference: Obj, container: Obj, pod: Obj) -> str:
    """Limits and requests in units of the divisor, rounded up (1 for cpu and bytes by default)."""
    wanted = reference.get("containerName")
    if wanted and wanted != container.get("name"):
        container = next((c for c in containers(pod) if c["name"] == wanted), container)
    kind, _, name = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    text = (resources.get(kind) or {}).get(name)
    if text is None and kind == "limits":
        text = quantities.NODE_DEFAULTS.get(name)
    divisor = quantities.parse(str(reference.get("divisor") or "1")) or 1
    return str(-(-quantities.parse(str(text or "0")) // divisor))


def service_variables(services: Iterable[Obj], namespace: str, *, links: bool) -> dict[str, str]:
    """{NAME}_SERVICE_HOST and its like, of services with a cluster address.

    default/kubernetes always, those of the pod's own namespace with links (enableServiceLinks).
    """
    values: dict[str, str] = {}
    for service in sorted(services, key=lambda s: (s["metadata"].get("creationTimestamp") or "", _key(s))):
        meta, spec = service["metadata"], service.get("spec") or {}
        master = (meta["namespace"], meta["name"]) == ("default", "kubernetes")
        host = spec.get("clusterIP") or ""
        ports = spec.get("ports") or []
        if not (master or (links and meta["namespace"] == namespace)) or host in ("", "None") or not ports:
            continue
        name = meta["name"].upper().replace("-", "_")
        values[f"{name}_SERVICE_HOST"] = host
        values[f"{name}_SERVICE_PORT"] = str(ports[0]["port"])
        for port in ports:
            if port.get("name"):
                word = port["name"].upper().replace("-", "_")
                values[f"{name}_SERVICE_PORT_{word}"] = str(port["port"])
        values.update(_docker_links(name, host, ports))
    return values


def _docker_links(name: str, host: str, ports: list[Obj]) -> Iterator[tuple[str, str]]:
    shown = f"[{host}]" if address(host).version == 6 else host
    for index, port in enumerate(ports):
        protocol = (port.get("protocol") or "TCP").lower()
        url = f"{protocol}://{shown}:{port['port']}"
        prefix = f"{name}_PORT_{port['port']}_{protocol.upper()}"
        if index == 0:
            yield f"{name}_PORT", url
        yield prefix, url
        yield f"{prefix}_PROTO", protocol
        yield f"{prefix}_PORT", str(port["port"])
        yield f"{prefix}_ADDR", host


def _key(obj: Obj) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
