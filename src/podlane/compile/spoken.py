"""What agents say of their backends: the annotation `podlane.dev/backend` of their own Nodes.

{"type": "vxlan", "receives": {"vxlan": {"vni": 85, "port": 8472}}, "sends": ["vxlan"]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import msgspec
from msgspec.structs import replace

from podlane.errors import ConfigError
from podlane.model.backends import AVAILABLE_BACKENDS, BackendType
from podlane.model.config import NetworkConfig
from podlane.model.objects import Node

BACKEND_ANNOTATION: Final = "podlane.dev/backend"


class Said(msgspec.Struct, frozen=True):
    """The annotation. receives: by name of a backend, numbers as its section of NetworkConfig has them."""

    type: str
    receives: dict[str, dict[str, int]] = {}
    sends: tuple[str, ...] = ()


def announcement(kind: BackendType, receives: Mapping[str, Mapping[str, int]], sends: Iterable[str]) -> str:
    said = Said(kind, {name: dict(receives[name]) for name in sorted(receives)}, tuple(sorted(sends)))
    return msgspec.json.encode(said).decode()


def said(node: Node) -> Said | None:
    """None where the agent has said nothing yet. Raises ConfigError for what cannot be read."""
    text = node.metadata.annotations.get(BACKEND_ANNOTATION)
    return None if text is None else _parsed(text)


@lru_cache(maxsize=64)
def _parsed(text: str) -> Said:
    """Most nodes say the same."""
    try:
        return msgspec.json.decode(text, type=Said)
    except msgspec.DecodeError as error:
        raise ConfigError(f"annotation {BACKEND_ANNOTATION} cannot be read: {error}") from None


def data(kind: BackendType, config: NetworkConfig) -> dict[str, int]:
    """What a sender must know."""
    match kind:
        case BackendType.VXLAN:
            return {"vni": config.backend.vni, "port": config.backend.port}
        case BackendType.UDP:
            return {"port": config.udp.port}
        case BackendType.WIREGUARD:
            return {"port": config.wireguard.port}
        case _:
            return {}


def sends(node: Node) -> frozenset[str]:
    """What it sends to others by."""
    told = _readable(node)
    return frozenset(told.sends) & _KNOWN if told is not None else frozenset()


def demands(node: Node, config: NetworkConfig) -> frozenset[str]:
    """What another node must know to send to this one, which does not receive by what that has configured."""
    told = _readable(node)
    if told is None or config.backend.type in told.receives:
        return frozenset()
    return frozenset((told.type,)) & _KNOWN


def received(node: Node) -> frozenset[str]:
    told = _readable(node)
    return frozenset(told.receives) if told is not None else frozenset()


def configured(node: Node, config: NetworkConfig) -> NetworkConfig:
    """The cluster's configuration with the backend that this node has by its own word."""
    told = _readable(node)
    if told is None or told.type == config.backend.type or told.type not in _KNOWN:
        return config
    backend = replace(config.backend, type=BackendType(told.type), direct_routing=False)
    return replace(config, backend=backend)


def _readable(node: Node) -> Said | None:
    try:
        return said(node)
    except ConfigError:
        return None  # that node's own unit says so


def port_of(node: Node, kind: BackendType, default: int) -> int:
    """Where it takes packets of that backend in."""
    told = _readable(node)
    return told.receives.get(kind, {}).get("port", default) if told is not None else default


_KNOWN: Final = frozenset(map(str, AVAILABLE_BACKENDS))
