"""A section of NetworkConfig: camelCase keys, and none that is not known."""

from __future__ import annotations

from msgspec import Struct


class Section(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    pass
