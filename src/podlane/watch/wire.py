"""Answers of list and watch, as far as every kind has them: what an object is, others read (Kubernetes API,
meta/v1: ListMeta, ObjectMeta, WatchEvent, Status).
"""

from __future__ import annotations

from typing import Final

import msgspec

INITIAL_EVENTS_END: Final = "k8s.io/initial-events-end"


class Meta(msgspec.Struct, rename="camel"):
    """ListMeta and ObjectMeta. annotations: as they came, few are ever looked at here."""

    resource_version: str = ""
    name: str = ""
    namespace: str = ""
    annotations: msgspec.Raw = msgspec.Raw(b"null")
    continue_: str = msgspec.field(default="", name="continue")

    @property
    def marks_end(self) -> bool:
        """Of a bookmark: everything there was has been sent."""
        found = msgspec.json.decode(self.annotations)
        return isinstance(found, dict) and found.get(INITIAL_EVENTS_END) == "true"


class Head(msgspec.Struct):
    metadata: Meta = msgspec.field(default_factory=Meta)


class ItemList(msgspec.Struct, rename="camel"):
    items: list[msgspec.Raw] | None = None
    metadata: Meta = msgspec.field(default_factory=Meta)
    api_version: str = ""
    kind: str = ""


class Event(msgspec.Struct):
    """What every event is judged by; its object is read once more, for what it is."""

    type: str
    object: Head


class Failure(msgspec.Struct):
    """Status."""

    message: str = ""
    reason: str = ""
    code: int = 500


class FailureEvent(msgspec.Struct):
    object: Failure


LIST: Final = msgspec.json.Decoder(ItemList)
EVENT: Final = msgspec.json.Decoder(Event)
HEAD: Final = msgspec.json.Decoder(Head)
FAILURE: Final = msgspec.json.Decoder(FailureEvent)
