"""Containers, their ports, environment, mounts and probes: pkg/apis/core/validation of Kubernetes. Pure."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

from podlane.lab.api import validation_field as field
from podlane.lab.api import validation_names as names
from podlane.lab.api.validation_rules import (
    NOT_NEGATIVE,
    Errors,
    Rule,
    exactly_one,
    file_mode,
    join,
    not_negative,
    one_of,
    port,
    port_or_name,
    text,
    unique,
)

CORE = "io.k8s.api.core.v1."

_ONE_HANDLER = "may not specify more than 1 handler type"
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_ENV_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
_FIELDS = (
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
)


def image(value: Any, path: str) -> Errors:
    if value != value.strip():
        yield field.invalid(path, value, "must not have leading or trailing whitespace")


def field_path(value: Any, path: str) -> Errors:
    plain = re.sub(r"\['[^']*'\]$", "", value)
    subscribed = plain != value
    if plain not in _FIELDS or (subscribed and plain not in _FIELDS[:2]):
        why = f"error converting fieldPath: field label not supported: {value}"
        yield field.invalid(path, value, why)


def relative_path(value: Any, path: str) -> Errors:
    """Stays inside of a volume."""
    if value.startswith("/"):
        yield field.invalid(path, value, "must be a relative path")
    if ".." in value.split("/"):
        yield field.invalid(path, value, "must not contain '..'")


def header_name(value: Any, path: str) -> Errors:
    yield from text(names.header_name)(value, path)


# --- type checks ----------------------------------------------------------------------------------


def handler(value: dict[str, Any], path: str) -> Errors:
    missing = "must specify a handler type"
    yield from exactly_one(value, path, _HANDLERS, missing, _ONE_HANDLER)


def env(value: dict[str, Any], path: str) -> Errors:
    source = value.get("valueFrom")
    if source is None:
        return
    here = join(path, "valueFrom")
    if value.get("value"):
        yield field.invalid(here, "", "may not be specified when `value` is not empty")
    found = [k for k in _ENV_SOURCES if source.get(k) is not None]
    if not found:
        listed = ", ".join(f"`{k}`" for k in _ENV_SOURCES)
        yield field.invalid(here, "", f"must specify one of: {listed}")
    elif len(found) > 1:
        yield field.invalid(here, "", "may not have more than one field specified at a time")


def env_from(value: dict[str, Any], path: str) -> Errors:
    found = [k for k in ("configMapRef", "secretRef") if value.get(k) is not None]
    if not found:
        yield field.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")
    elif len(found) > 1:
        yield field.invalid(path, "", "may not have more than one field specified at a time")


def resources(value: dict[str, Any], path: str) -> Errors:
    limits = value.get("limits", {})
    for group in ("limits", "requests"):
        for name, quantity in value.get(group, {}).items():
            here = f"{path}.{group}[{name}]"
            for why in names.qualified_name(name):
                yield field.invalid(here, name, why)
            if amount(quantity) < 0:
                yield field.invalid(here, quantity, NOT_NEGATIVE)
    for name, quantity in value.get("requests", {}).items():
        if name in limits and amount(quantity) > amount(limits[name]):
            why = f"must be less than or equal to {name} limit of {limits[name]}"
            yield field.invalid(f"{path}.requests", quantity, why)


_BINARY = {s: Decimal(1024) ** i for i, s in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_DECIMAL = {s: Decimal(10) ** i for s, i in zip("numkMGTPE", (-9, -6, -3, 3, 6, 9, 12, 15, 18), strict=True)}


def amount(quantity: Any) -> Decimal:
    """The number a resource.Quantity stands for; its form was checked when it was decoded."""
    shown = str(quantity)
    for suffix, factor in (*_BINARY.items(), *_DECIMAL.items()):
        if shown.endswith(suffix):
            shown, scale = shown.removesuffix(suffix), factor
            break
    else:
        scale = Decimal(1)
    try:
        return Decimal(shown) * scale
    except InvalidOperation:
        return Decimal(0)


# --- a pod's containers together ------------------------------------------------------------------


def containers(spec: dict[str, Any], path: str) -> Errors:
    """What containers must not have in common, and what they say of volumes."""
    volumes = {v.get("name") for v in spec.get("volumes", [])}
    seen: set[str] = set()
    host_ports: set[str] = set()
    host_network = bool(spec.get("hostNetwork"))
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for i, container in enumerate(spec.get(group, [])):
            here = f"{join(path, group)}[{i}]"
            name = container.get("name")
            if name and name in seen:
                yield field.duplicate(f"{here}.name", name)
            seen.add(name)
            yield from _mounts(container, here, volumes)
            yield from _probes(container, here, group)
            if group == "initContainers" and container.get("restartPolicy") != "Always":
                host_ports_here: set[str] = set()
            else:
                host_ports_here = host_ports
            yield from _ports(container, here, host_network, host_ports_here)


def _mounts(container: dict[str, Any], path: str, volumes: set[Any]) -> Errors:
    points: set[str] = set()
    for i, mount in enumerate(container.get("volumeMounts", [])):
        here = f"{path}.volumeMounts[{i}]"
        if mount.get("name") and mount["name"] not in volumes:
            yield field.not_found(f"{here}.name", mount["name"])
        point = mount.get("mountPath")
        if point and point in points:
            yield field.invalid(f"{here}.mountPath", point, "must be unique")
        points.add(point)


_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def _probes(container: dict[str, Any], path: str, group: str) -> Errors:
    sidecar = container.get("restartPolicy") == "Always"
    for probe in _PROBES:
        value = container.get(probe)
        if value is None:
            continue
        here = f"{path}.{probe}"
        if group == "initContainers" and not sidecar:
            yield field.forbidden(here, "may not be set for init containers without restartPolicy=Always")
        elif group == "ephemeralContainers":
            yield field.forbidden(here, "cannot be set for an Ephemeral Container")
        if probe != "readinessProbe" and value.get("successThreshold", 1) != 1:
            yield field.invalid(f"{here}.successThreshold", value["successThreshold"], "must be 1")
        if probe == "readinessProbe" and value.get("terminationGracePeriodSeconds") is not None:
            grace = value["terminationGracePeriodSeconds"]
            why = "must not be set for readinessProbes"
            yield field.invalid(f"{here}.terminationGracePeriodSeconds", grace, why)
    if group == "initContainers" and not sidecar and container.get("lifecycle"):
        why = "may not be set for init containers without restartPolicy=Always"
        yield field.forbidden(f"{path}.lifecycle", why)


def _ports(container: dict[str, Any], path: str, host_network: bool, taken: set[str]) -> Errors:
    for i, item in enumerate(container.get("ports", [])):
        here = f"{path}.ports[{i}]"
        host = item.get("hostPort", 0)
        if host_network and host and host != item.get("containerPort"):
            yield field.invalid(
                f"{here}.containerPort",
                item.get("containerPort", 0),
                "must match `hostPort` when `hostNetwork` is true",
            )
        if host:
            key = f"{item.get('protocol', 'TCP')}/{item.get('hostIP', '')}/{host}"
            if key in taken:
                yield field.duplicate(f"{here}.hostPort", key)
            taken.add(key)


# --- tables ---------------------------------------------------------------------------------------

_container: dict[str, Rule] = {
    "name": text(names.dns_label),
    "image": image,
    "imagePullPolicy": one_of("Always", "IfNotPresent", "Never"),
    "terminationMessagePolicy": one_of("FallbackToLogsOnError", "File"),
    "restartPolicy": one_of("Always", "Never", "OnFailure"),
    "ports": unique("name"),
}

RULES: dict[str, dict[str, Rule]] = {
    CORE + "Container": _container,
    CORE + "EphemeralContainer": _container,
    CORE + "ContainerPort": {
        "containerPort": port,
        "hostPort": port,
        "hostIP": text(names.ip),
        "name": text(names.port_name),
        "protocol": one_of("SCTP", "TCP", "UDP"),
    },
    CORE + "EnvVar": {"name": text(names.env_name)},
    CORE + "EnvFromSource": {"prefix": text(names.env_name)},
    CORE + "ObjectFieldSelector": {"fieldPath": field_path},
    CORE + "ConfigMapKeySelector": {"key": text(names.config_key)},
    CORE + "SecretKeySelector": {"key": text(names.config_key)},
    CORE + "VolumeMount": {"subPath": relative_path, "subPathExpr": relative_path},
    CORE + "Probe": dict.fromkeys(
        ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"),
        not_negative,
    ),
    CORE + "HTTPGetAction": {"port": port_or_name, "scheme": one_of("HTTP", "HTTPS")},
    CORE + "HTTPHeader": {"name": header_name},
    CORE + "TCPSocketAction": {"port": port_or_name},
    CORE + "GRPCAction": {"port": port},
    CORE + "KeyToPath": {"key": text(names.config_key), "mode": file_mode, "path": relative_path},
}

REQUIRED: dict[str, dict[str, str]] = {
    CORE + "Container": {"name": "", "image": ""},
    CORE + "EphemeralContainer": {"name": "", "image": ""},
    CORE + "ContainerPort": {"containerPort": ""},
    CORE + "EnvVar": {"name": ""},
    CORE + "ObjectFieldSelector": {"fieldPath": ""},
    CORE + "ResourceFieldSelector": {"resource": ""},
    CORE + "ConfigMapKeySelector": {"name": "", "key": ""},
    CORE + "SecretKeySelector": {"name": "", "key": ""},
    CORE + "ConfigMapEnvSource": {"name": ""},
    CORE + "SecretEnvSource": {"name": ""},
    CORE + "VolumeMount": {"name": "", "mountPath": ""},
    CORE + "HTTPGetAction": {"path": "", "port": ""},
    CORE + "TCPSocketAction": {"port": ""},
    CORE + "ExecAction": {"command": ""},
    CORE + "HTTPHeader": {"name": ""},
    CORE + "KeyToPath": {"key": "", "path": ""},
}

CHECKS = {
    CORE + "Probe": handler,
    CORE + "LifecycleHandler": handler,
    CORE + "EnvVar": env,
    CORE + "EnvFromSource": env_from,
    CORE + "ResourceRequirements": resources,
}
