"""Objects and lists as clients asked for them: as they are, as tables, or only their metadata."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from podlane.lab.api import convert
from podlane.lab.api.pages import Page
from podlane.lab.api.request import Wanted
from podlane.lab.api.resources import Resource
from podlane.lab.api.store import Record, encode
from podlane.lab.api.table import Tables
from podlane.lab.api.watch import Delivery
from podlane.lab.client import Obj

INITIAL_EVENTS_END = "k8s.io/initial-events-end"


class Renderer(Struct, frozen=True):
    """include_object: what a table's rows carry: Metadata, Object or None."""

    resource: Resource
    wanted: Wanted
    tables: Tables
    include_object: str = "Metadata"

    @property
    def plain(self) -> bool:
        """Stored bytes can be sent as they are."""
        return self.wanted.form == "object" and not self.resource.converted

    def one(self, record: Record) -> bytes:
        if self.plain:
            return record.data
        obj = convert.from_storage(self.resource, record.obj)
        if self.wanted.form == "table":
            return encode(self._table([record], record.obj["metadata"].get("resourceVersion", "")))
        if self.wanted.form == "metadata":
            return encode(self._metadata(obj))
        return encode(obj)

    def many(self, page: Page) -> bytes:
        meta: Obj = {"resourceVersion": str(page.revision)}
        if page.continue_token:
            meta["continue"] = page.continue_token
            if page.remaining is not None:
                meta["remainingItemCount"] = page.remaining
        if self.wanted.form == "table":
            table = self._table(page.records, str(page.revision))
            table["metadata"] = meta
            return encode(table)
        kind, version = self.resource.list_kind, self.resource.api_version
        if self.wanted.form == "metadata":
            kind, version = "PartialObjectMetadataList", f"meta.k8s.io/{self.wanted.version}"
        head = encode({"kind": kind, "apiVersion": version, "metadata": meta})
        items = b",".join(self.one(record) for record in page.records)
        return b'%b,"items":[%b]}' % (head[:-1], items)

    def line(self, delivery: Delivery) -> bytes:
        """One line of a watch."""
        if self.plain:
            return delivery.line
        if self.wanted.form == "table":
            revision = delivery.record.obj["metadata"].get("resourceVersion", "")
            data = encode(self._table([delivery.record], revision))
        else:
            data = self.one(delivery.record)
        return b'{"type":"%b","object":%b}\n' % (delivery.type.encode(), data)

    def bookmark(self, revision: int, *, initial_events_end: bool = False) -> bytes:
        """Everything up to revision was sent."""
        meta: Obj = {"resourceVersion": str(revision), "creationTimestamp": None}
        if initial_events_end:
            meta["annotations"] = {INITIAL_EVENTS_END: "true"}
        obj: Obj = {"kind": self.resource.kind, "apiVersion": self.resource.api_version, "metadata": meta}
        if self.wanted.form == "table":
            rows = [{"cells": [], "object": self._metadata(obj)}]
            obj = {**self._frame(str(revision)), "columnDefinitions": None, "rows": rows}
        elif self.wanted.form == "metadata":
            obj = self._metadata(obj)
        return encode({"type": "BOOKMARK", "object": obj}) + b"\n"

    def _frame(self, revision: str) -> Obj:
        return {
            "kind": "Table",
            "apiVersion": f"meta.k8s.io/{self.wanted.version}",
            "metadata": {"resourceVersion": revision},
        }

    def _table(self, records: Sequence[Record], revision: str) -> Obj:
        columns = self.tables.columns(self.resource)
        table = self._frame(revision)
        table["columnDefinitions"] = [c.definition for c in columns]
        table["rows"] = list(self._rows(records))
        return table

    def _rows(self, records: Iterable[Record]) -> Iterable[Obj]:
        for record in records:
            row: Obj = {"cells": self.tables.cells(self.resource, record.obj)}
            if self.include_object == "Object":
                row["object"] = convert.from_storage(self.resource, record.obj)
            elif self.include_object != "None":
                row["object"] = self._metadata(record.obj)
            yield row

    def _metadata(self, obj: Obj) -> Obj:
        return {
            "kind": "PartialObjectMetadata",
            "apiVersion": f"meta.k8s.io/{self.wanted.version}",
            "metadata": obj["metadata"],
        }
