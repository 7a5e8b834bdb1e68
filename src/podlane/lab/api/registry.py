"""The API's verbs over the store: what HTTP handlers and the lab's own controllers both call.

Everything is synchronous and happens in one transaction a call: an object is checked, defaulted, validated,
given its addresses and stored, or nothing of it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from msgspec import Struct

from podlane.errors import ConfigError
from podlane.lab.api import convert, crd_definition, deletion, fields, metadata, namespaces, status
from podlane.lab.api.allocation import ServiceAllocator
from podlane.lab.api.deletion import DeleteOptions
from podlane.lab.api.pages import Page, Pages
from podlane.lab.api.resources import Catalog, Resource
from podlane.lab.api.store import LogEvent, RacedError, Record, Store, Transaction, copied
from podlane.lab.api.strategy import BuiltinStrategy, CustomResources, Strategy
from podlane.lab.api.watch import Hub, Scope, Watcher
from podlane.lab.client import Obj
from podlane.model import selectors
from podlane.model.config import DEFAULT, NetworkConfig


class WriteOptions(Struct, frozen=True, kw_only=True):
    """field_validation: Strict, Warn or Ignore. warnings: where to put them, None to drop them."""

    dry_run: bool = False
    field_validation: str = "Ignore"
    warnings: list[str] | None = None


T = TypeVar("T")

_RACES = 5
_EXPIRED_AT_ONCE = 100  # etcd takes no more than 128 operations in one transaction

DEFAULT_WRITE = WriteOptions()
DEFAULT_DELETE = DeleteOptions()


class Registry:
    """now_s: the clock, for tests."""

    def __init__(
        self,
        store: Store,
        config: NetworkConfig = DEFAULT,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.catalog = Catalog()
        self.services = ServiceAllocator(store, config)
        self.hub = Hub(store)
        self.pages = Pages()
        self.custom: CustomResources | None = None
        self._builtin: Strategy = BuiltinStrategy(self.services)
        self._now_s = now_s

    def strategy(self, resource: Resource) -> Strategy:
        if resource.custom and self.custom is not None:
            return self.custom
        return self._builtin

    # --- reading ---------------------------------------------------------------------------------

    def get(self, resource: Resource, namespace: str, name: str) -> Record:
        """Raises NotFoundError."""
        record = self.store.get(resource.storage, namespace, name)
        if record is None:
            raise status.not_found(resource, name)
        return record

    def scope(
        self, resource: Resource, namespace: str, label_selector: str = "", field_selector: str = ""
    ) -> Scope:
        """Raises ApiError(400) on a selector that cannot be read."""
        try:
            labels = selectors.parse(label_selector)
        except ConfigError as error:
            raise status.bad_request(f"unable to parse requirement: {error}") from None
        extra = self.custom.selectable(resource) if resource.custom and self.custom else ()
        found = fields.parse(convert.field_selector(resource, field_selector), resource.storage, extra=extra)
        return Scope(resource.storage, namespace, labels, found)

    def list(self, scope: Scope, *, limit: int = 0, continue_token: str = "") -> Page:
        """In order of namespace and name. Raises GoneError when continue_token is too old."""
        if continue_token:
            return self.pages.next(continue_token, limit)
        records: Sequence[Record]
        name = scope.fields.exact("metadata.name")
        if name is not None and (scope.namespace or not name):
            one = self.store.get(scope.resource, scope.namespace, name)
            records = [one] if one else []
        else:
            records = self.store.records(scope.resource, scope.namespace)
        if not scope.labels.empty or scope.fields:
            records = [r for r in records if scope.matches(r)]
        return self.pages.first(
            records, self.store.revision, limit, counted=scope.labels.empty and not scope.fields
        )

    def watch(self, scope: Scope, since: int) -> Watcher:
        """Raises GoneError when `since` is older than the log."""
        return self.hub.watch(scope, since)

    # --- writing ---------------------------------------------------------------------------------

    def decode(self, resource: Resource, obj: Obj, options: WriteOptions) -> Obj:
        """A client's object in the resource's storage version. Raises ApiError(400)."""
        metadata.check_type(resource, obj)
        obj, unknown = self.strategy(resource).decode(resource, obj)
        if unknown and options.field_validation == "Strict":
            kind = obj["kind"]
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            raise status.bad_request(
                f'{kind} in version "{obj["apiVersion"]}" cannot be handled as a {kind}: '
                f"strict decoding error: {listed}"
            )
        if options.warnings is not None:
            if options.field_validation == "Warn":
                options.warnings.extend(f'unknown field "{path}"' for path in unknown)
            if resource.storage == crd_definition.STORAGE:
                options.warnings.extend(crd_definition.warnings(obj))
        stored = convert.to_storage(resource, obj)
        if resource.converted and not resource.custom:
            stored, _ = self.strategy(resource).decode(resource, stored)  # the defaults of that version
        return stored

    def create(
        self,
        resource: Resource,
        namespace: str,
        obj: Obj,
        options: WriteOptions = DEFAULT_WRITE,
    ) -> Record:
        """obj now belongs to the registry. Raises AlreadyExistsError, InvalidError, ApiError."""
        obj = self.decode(resource, obj, options)
        meta = metadata.check_place(resource, namespace, "", obj)
        strategy = self.strategy(resource)
        with self.store.transaction(dry_run=options.dry_run) as transaction:
            now_s = self._now_s()
            metadata.fill_new(resource, obj, now_s)
            if resource.namespaced:
                namespaces.check_open(self.store, resource, meta["namespace"], meta["name"])
            strategy.prepare_create(resource, obj)
            namespaces.prepare(resource, obj, None)
            problems = strategy.validate_create(resource, obj)
            if problems:
                raise status.invalid(resource, meta["name"], problems)
            if transaction.get(resource.storage, meta.get("namespace", ""), meta["name"]):
                raise status.already_exists(resource, meta["name"])
            strategy.created(resource, obj, transaction)
            return transaction.put(resource.storage, obj)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        obj: Obj,
        options: WriteOptions = DEFAULT_WRITE,
        *,
        subresource: str = "",
    ) -> Record:
        """obj now belongs to the registry. Raises ConflictError when its resourceVersion is not the last."""
        obj = self.decode(resource, obj, options)
        metadata.check_place(resource, namespace, name, obj)
        with self.store.transaction(dry_run=options.dry_run) as transaction:
            return self._replace(transaction, resource, self.get(resource, namespace, name), obj, subresource)

    def change(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        apply: Callable[[Obj], Obj],
        options: WriteOptions = DEFAULT_WRITE,
        *,
        subresource: str = "",
    ) -> Record:
        """Read, apply and write as one: patches and subresources. apply may not change what it is given."""

        def write() -> Record:
            with self.store.transaction(dry_run=options.dry_run) as transaction:
                old = self.get(resource, namespace, name)
                before = convert.from_storage(resource, old.obj)
                obj = self.decode(resource, copied(apply(before)), options)
                metadata.check_place(resource, namespace, name, obj)
                return self._replace(transaction, resource, old, obj, subresource)

        return _again(write)

    def _replace(
        self, transaction: Transaction, resource: Resource, record: Record, new: Obj, subresource: str
    ) -> Record:
        old, strategy = record.obj, self.strategy(resource)
        meta = new["metadata"]
        if meta.get("uid") and meta["uid"] != old["metadata"]["uid"]:
            why = (
                f"Precondition failed: UID in precondition: {meta['uid']}, "
                f"UID in object meta: {old['metadata']['uid']}"
            )
            raise status.conflict(resource, record.name, why)
        if meta.get("resourceVersion") and meta["resourceVersion"] != old["metadata"]["resourceVersion"]:
            raise status.conflict(resource, record.name)
        metadata.keep_old(new, old)
        strategy.prepare_update(resource, new, old, subresource)
        namespaces.prepare(resource, new, old, subresource)
        if metadata.same(new, old):
            return record
        problems = [
            *_added_finalizers(new, old),
            *strategy.validate_update(resource, new, old, subresource),
        ]
        if problems:
            raise status.invalid(resource, record.name, problems)
        strategy.updated(resource, new, old, transaction)
        if deletion.due(new):
            return self._remove(transaction, resource, record, new)
        return transaction.put(resource.storage, new)

    # --- deleting --------------------------------------------------------------------------------

    def delete(
        self, resource: Resource, namespace: str, name: str, options: DeleteOptions = DEFAULT_DELETE
    ) -> tuple[Record, bool]:
        """(the object, whether it is gone). Raises NotFoundError, ConflictError (preconditions), ApiError."""
        return _again(lambda: self._delete(resource, namespace, name, options))

    def _delete(
        self, resource: Resource, namespace: str, name: str, options: DeleteOptions
    ) -> tuple[Record, bool]:
        with self.store.transaction(dry_run=options.dry_run) as transaction:
            record = self.get(resource, namespace, name)
            namespaces.check_deletable(resource, name)
            deletion.check(resource, record.obj, options)
            step = deletion.step(resource, copied(record.obj), options, self._now_s())
            if step.gone:
                return self._remove(transaction, resource, record, step.obj), True
            if metadata.same(step.obj, record.obj):
                return record, False
            return transaction.put(resource.storage, step.obj), False

    def delete_all(self, resource: Resource, scope: Scope, options: DeleteOptions = DEFAULT_DELETE) -> Page:
        """deletecollection: each object that is in scope, each on its own. What there was."""
        page = self.list(scope)
        for record in page.records:
            self.delete(resource, record.namespace, record.name, options)
        return page

    def expire_events(self, life_s: float) -> int:
        """Delete the Events nobody has touched for life_s seconds; how many."""
        row, limit = self.catalog.named("events"), metadata.timestamp(self._now_s() - life_s)
        old = [r for r in self.store.records(row.storage) if _last_touched(r.obj) < limit]
        for first in range(0, len(old), _EXPIRED_AT_ONCE):
            with self.store.transaction() as transaction:
                for record in old[first : first + _EXPIRED_AT_ONCE]:
                    transaction.delete(row.storage, record.namespace, record.name)
        return len(old)

    def _remove(self, transaction: Transaction, resource: Resource, record: Record, last: Obj) -> Record:
        self.strategy(resource).deleted(resource, last, transaction)
        gone = transaction.delete(resource.storage, record.namespace, record.name, last)
        assert gone is not None
        return gone


def _again(write: Callable[[], T]) -> T:
    """write(), which reads what it changes, again for each time that another process was first."""
    for _ in range(_RACES):
        try:
            return write()
        except RacedError:
            pass
    return write()


def _last_touched(event: Obj) -> str:
    """RFC 3339 in UTC, so that later is greater."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event["metadata"]["creationTimestamp"])


def _added_finalizers(new: Obj, old: Obj) -> Sequence[status.Problem]:
    if "deletionTimestamp" not in old["metadata"]:
        return ()
    added = sorted(set(metadata.finalizers(new)) - set(metadata.finalizers(old)))
    if not added:
        return ()
    listed = ", ".join(f'"{f}"' for f in added)
    why = "no new finalizers can be added if the object is being deleted, found new finalizers []string{"
    return [status.Problem("metadata.finalizers", "FieldValueForbidden", f"Forbidden: {why}{listed}}}")]


__all__ = ["DeleteOptions", "LogEvent", "Registry", "WriteOptions"]
