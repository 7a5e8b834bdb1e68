"""Lists in pages (limit, continue): all pages show one moment, the first page's.

Stored states are never changed, so a page kept for later costs a list of references. The last few lists are
kept; a token of an older one, or of another process, is Expired and the client lists again.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections import OrderedDict
from collections.abc import Sequence

from msgspec import Struct

from podlane.errors import ApiError, GoneError
from podlane.lab.api.store import Record

KEPT = 64

_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new "
    "list without the continue parameter, or use the continue token in this response to retrieve the "
    "remainder of the results. Continuing with the provided token results in an inconsistent list."
)


class Page(Struct, frozen=True):
    """continue_token: "" on the last page. remaining: objects after this page; None when not known."""

    records: Sequence[Record]
    revision: int
    continue_token: str = ""
    remaining: int | None = None


class _Kept(Struct):
    records: Sequence[Record]
    revision: int
    counted: bool


class Pages:
    def __init__(self) -> None:
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def first(self, records: Sequence[Record], revision: int, limit: int, *, counted: bool) -> Page:
        """counted: say how many remain (only without selectors, as kube-apiserver)."""
        if limit <= 0 or len(records) <= limit:
            return Page(records, revision)
        key = secrets.token_hex(8)
        self._kept[key] = _Kept(records, revision, counted)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._page(key, 0, limit)

    def next(self, token: str, limit: int) -> Page:
        """Raises GoneError when it is too old, ApiError(400) when it is no token."""
        try:
            key, _, offset = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
            at = int(offset)
        except (binascii.Error, ValueError):
            raise ApiError("continue key is not valid", code=400, reason="BadRequest") from None
        if key not in self._kept:
            raise GoneError(_EXPIRED)
        self._kept.move_to_end(key)
        return self._page(key, at, limit)

    def _page(self, key: str, start: int, limit: int) -> Page:
        kept = self._kept[key]
        end = start + limit if limit > 0 else len(kept.records)
        remaining = max(len(kept.records) - end, 0)
        if not remaining:
            return Page(kept.records[start:end], kept.revision)
        token = base64.urlsafe_b64encode(f"{key}:{end}".encode()).decode()
        return Page(kept.records[start:end], kept.revision, token, remaining if kept.counted else None)
