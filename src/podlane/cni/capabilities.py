"""What a runtime hands on from a Pod: the capabilities portMappings and bandwidth. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from podlane.cni.shaping import from_annotations


def runtime_config(pod: Mapping[str, Any]) -> dict[str, Any]:
    """`runtimeConfig` of a Pod as the API has it; empty if the Pod asks for nothing.

    Host ports are those of the containers and of the init containers that go on beside them. Raises
    ConfigError naming a bandwidth annotation that is none.
    """
    found: dict[str, Any] = {}
    if mappings := list(_port_mappings(pod.get("spec") or {})):
        found["portMappings"] = mappings
    if bandwidth := from_annotations((pod.get("metadata") or {}).get("annotations") or {}):
        found["bandwidth"] = bandwidth
    return found


def _port_mappings(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    beside = [each for each in spec.get("initContainers") or () if each.get("restartPolicy") == "Always"]
    for container in (*beside, *(spec.get("containers") or ())):
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield {
                    "hostPort": port["hostPort"],
                    "containerPort": port["containerPort"],
                    "protocol": port.get("protocol", "TCP").lower(),
                    "hostIP": port.get("hostIP", ""),
                }
