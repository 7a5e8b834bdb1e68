"""What an agent says of itself at its Node, for `podlane status`: what holds until it is started anew."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from msgspec import Struct

from podlane import redaction
from podlane.model.config import NetworkConfig

AGENT_ANNOTATION: Final = "podlane.dev/agent"
NETWORK_UNAVAILABLE: Final = "NetworkUnavailable"  # core/v1, of a Node
UP, NOT_READY = "PodlaneIsUp", "PodlaneIsNotReady"
REASONS: Final = frozenset({UP, NOT_READY})
"""Why a Node's NetworkUnavailable is what it is, where an agent has said so."""
CONFLICT: Final = "podlane.dev/Conflict"
"""The Node's condition: who or what else on it works against podlane."""
DEGRADED: Final = "podlane.dev/Degraded"
"""The Node's condition: what its kernel or engines refuse, but for what leads to other nodes."""


class AgentFacts(Struct, frozen=True, rename="camel"):
    """config: twelve hexadecimal digits that are the same for the same NetworkConfig, secrets aside.
    services, policy: switched on. families: those of the configuration, primary first.
    """

    version: str
    backend: str = ""
    config: str = ""
    families: list[str] = []
    services: bool = True
    policy: bool = True

    @property
    def annotation(self) -> str:
        return msgspec.json.encode(self).decode()


def read(annotation: str) -> AgentFacts | None:
    """None for what an agent of another version has written in another form."""
    try:
        return msgspec.json.decode(annotation, type=AgentFacts)
    except msgspec.MsgspecError:
        return None


def digest(config: NetworkConfig) -> str:
    """Nobody learns a password by guessing what has this digest: secrets are not in it."""
    plain = redaction.value(msgspec.to_builtins(config))
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:12]
