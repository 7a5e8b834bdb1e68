"""What a container runtime remembers of CNI: one file an attachment, written by libcni after each ADD.

    /var/lib/cni/results/<network>-<container id>-<ifname>
        {"kind": "cniCacheV1", "containerId", "ifName", "networkName", "result": {…},
         "cniArgs": [["K8S_POD_NAME", "web-1"], …], "capabilityArgs": {"portMappings": […]}}

It names both ends of the pod's link, its addresses, its pod and its host ports, whichever plugin made
them: the one place where a node that changes over finds all of that. Read only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from podlane.cni import results
from podlane.cni.fields import Fields
from podlane.cni.host_ports import PortMapping, read_mappings
from podlane.cni.results import IpInterface, Result
from podlane.errors import CniError

RESULTS_DIR: Final = "/var/lib/cni/results"
_KIND: Final = "cniCacheV1"
_MOST_BYTES: Final = 1 << 20


class Cached(Struct, frozen=True):
    """One attachment as its runtime remembers it. mappings: of host ports."""

    network: str
    container_id: str
    ifname: str
    result: Result
    pod_namespace: str = ""
    pod_name: str = ""
    mappings: tuple[PortMapping, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.container_id, self.ifname

    @property
    def sandbox(self) -> str:
        """Path of the pod's network namespace, "" if the result names none."""
        return next((i.sandbox for i in self.result.interfaces if i.name == self.ifname and i.sandbox), "")

    @property
    def addresses(self) -> list[IpInterface]:
        """Of the pod's interface, at most one a family."""
        found: dict[int, IpInterface] = {}
        for ip in self.result.ips:
            at = None if ip.interface is None else self.result.interfaces[ip.interface]
            if at is None or at.name == self.ifname:
                found.setdefault(ip.address.version, ip.address)
        return list(found.values())


def read(directory: str | Path) -> Iterator[Cached]:
    """Every attachment that the runtime knows, in the order of the files' names. What is no such file, or
    cannot be read, is passed over: it is nobody's that could be taken over. Blocking."""
    where = Path(directory)
    for path in sorted(where.iterdir()) if where.is_dir() else ():
        try:
            if path.is_file() and path.stat().st_size <= _MOST_BYTES:
                yield parse(path.read_bytes())
        except (OSError, ValueError):
            continue


def parse(content: bytes) -> Cached:
    """Raises ValueError for anything that is not as libcni writes it."""
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise ValueError(f"kind is not {_KIND}")
    try:
        result = results.decode(_mapping(document, "result"), "result")
    except CniError as error:
        raise ValueError(str(error)) from None
    pod = _arguments(document.get("cniArgs"))
    faults: list[str] = []
    entries = Fields(_mapping(document, "capabilityArgs"), "", faults).objects("portMappings")
    mappings = tuple(read_mappings(entries))
    return Cached(
        _text(document, "networkName"),
        _text(document, "containerId"),
        _text(document, "ifName"),
        result=result,
        pod_namespace=pod.get("K8S_POD_NAMESPACE", ""),
        pod_name=pod.get("K8S_POD_NAME", ""),
        mappings=mappings,
    )


def _mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{key} is no mapping")  # noqa: TRY004
    return found


def _text(document: Mapping[str, Any], key: str) -> str:
    found = document.get(key)
    if not isinstance(found, str) or not found:
        raise ValueError(f"{key} is missing")
    return found


def _arguments(pairs: Any) -> dict[str, str]:
    if not isinstance(pairs, list):
        return {}
    return {
        pair[0]: pair[1]
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(each, str) for each in pair)
    }
