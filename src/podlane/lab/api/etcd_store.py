"""The lab's objects in etcd: one transaction a commit, compared with what memory has; history in etcd's own.

    PREFIX/objects/RESOURCE/NAMESPACE/NAME   an object without its resourceVersion, which is its mod_revision
    PREFIX/writers/WRITER                    what this process wrote last: a number for each commit

A commit puts its objects and its number. So when a member dies between a question and its answer, the number
tells whether the commit was done, and it is done once. All objects of one commit have one revision.

What others write to the same prefix comes from the watch (`Follower`); memory takes in every revision in
order, also when a commit of ours comes back with a later one than the next.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from podlane.errors import ApiError, LabError
from podlane.lab.api.etcd_client import (
    Connect,
    EtcdAwayError,
    EtcdClient,
    EtcdError,
    KeyValue,
    TxnAnswer,
    connect,
)
from podlane.lab.api.etcd_watch import Change, Follower, Lost
from podlane.lab.api.fields import footprint
from podlane.lab.api.store import (
    LOG_LENGTH,
    LogEvent,
    RacedError,
    Record,
    Store,
    Transaction,
    decode,
    encode,
    revived,
)
from podlane.lab.client import Obj
from podlane.model.stores import StoreAddress

log = logging.getLogger(__name__)

OPEN_S = 20.0
COMMIT_S = 5.0
"""How long a commit tries: a leader is elected in one to two seconds."""

_ATTEMPT_S = 2.0
_AWAY_S = 0.2
_REFUSE_S = 1.0
"""While etcd is away one commit a second tries, for _AWAY_S; others are refused at once: reads go on."""

_PAUSE_S = 0.05
_CATCH_UP_S = 5.0
_PAGE = 500
_TRIM_EVERY = 512


class _Logged(NamedTuple):
    """The log keeps bytes, not objects. before: a footprint."""

    revision: int
    resource: str
    type: str
    data: bytes
    before: bytes | None


class EtcdStore(Store):
    """prefix: of all keys, as /podlane/lab. writer: a name no other process uses that has this prefix.

    commit_s: how long a commit tries. Raises LabError when etcd does not answer within timeout_s.
    """

    step = 0

    def __init__(
        self,
        address: StoreAddress,
        prefix: str,
        *,
        writer: str = "control",
        connect: Connect = connect,
        log_length: int = LOG_LENGTH,
        timeout_s: float = OPEN_S,
        commit_s: float = COMMIT_S,
    ) -> None:
        super().__init__()
        self._commit_s = commit_s
        self._client = EtcdClient(address, connect)
        self._objects, self._writer = f"{prefix}/objects/".encode(), f"{prefix}/writers/{writer}".encode()
        self._life, self._commits = secrets.token_hex(8), 0
        self._log: deque[_Logged] = deque()
        self._log_length = log_length
        self._healthy, self._refused_until_s = True, 0.0
        self._behind, self._woken, self._polling = 0, False, False
        self._wake: Callable[[], None] | None = None
        watching = EtcdClient(address, connect)
        self._follower = Follower(watching, f"{prefix}/".encode(), self._written_elsewhere)
        try:
            # The number is an event of its own: when the watch brings it, history up to here is complete.
            self.revision = self._client.put(self._writer, self._number(), timeout_s=timeout_s)
            for record, resource in self._stored(self.revision):
                self.table(resource).put(record)
            start = max(self.revision - log_length, 1)
            self._follower.start(start)
            self._recall(start, timeout_s)
        except (EtcdAwayError, EtcdError) as error:
            self.close()
            raise LabError(f"store: {error}; is etcd running at {address.shown}?") from None

    # --- reading everything ----------------------------------------------------------------------

    def _stored(self, revision: int) -> Iterator[tuple[Record, str]]:
        """All objects as they were at revision, page by page."""
        start = self._objects
        while True:
            page = self._client.under(
                self._objects, start, limit=_PAGE, revision=revision, timeout_s=COMMIT_S
            )
            for kv in page.kvs:
                if (record := self._record(kv)) is not None:
                    yield record, self._place(kv.key)[0]
            if not page.more:
                return
            start = page.kvs[-1].key + b"\0"

    def _place(self, key: bytes) -> tuple[str, str, str]:
        """Raises ValueError for what is no key of an object."""
        if not key.startswith(self._objects):
            raise ValueError(key)
        resource, namespace, name = key[len(self._objects) :].decode().split("/")
        return resource, namespace, name

    def _record(self, kv: KeyValue) -> Record | None:
        try:
            obj = decode(kv.value)
            obj["metadata"]["resourceVersion"] = str(kv.mod_revision)
            _, namespace, name = self._place(kv.key)
        except (msgspec.DecodeError, ValueError, KeyError, TypeError) as error:
            log.error("etcd: %r is no object of ours: %s", kv.key, error)
            return None
        return Record(namespace, name, kv.mod_revision, obj, encode(obj))

    def _recall(self, start: int, timeout_s: float) -> None:
        """The log of what was written before this process, as far as etcd still has it."""
        self.floor, last = start - 1, self.revision
        if not self._follower.await_revision(last, timeout_s):
            raise EtcdAwayError("its watch does not get up to date")
        later: list[list[Change] | Lost] = []
        for item in self._follower.take():
            if isinstance(item, Lost):
                self.floor = item.revision - 1
                if not self._follower.await_revision(last, timeout_s):
                    raise EtcdAwayError("its watch does not get up to date")
                later += self._follower.take()
            else:
                later.append(item)
        for item in later:
            for change in item if isinstance(item, list) else ():
                if change.kv.mod_revision <= last and (event := self._event(change, remembered=False)):
                    self._remember(event)
        self._absorb(later)

    # --- what others wrote -----------------------------------------------------------------------

    def attend(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def _written_elsewhere(self) -> None:
        """On the watch's thread; for what this process wrote itself too."""
        if self._wake is not None and not self._woken:
            self._woken = True
            self._wake()

    def poll(self) -> None:
        self._woken = False
        if self._polling or self._open is not None:
            return
        self._polling = True
        try:
            if self._behind > self.revision:
                self._follower.await_revision(self._behind, _CATCH_UP_S)
            self._behind = 0
            self.publish(self._absorb(self._follower.take()))
        finally:
            self._polling = False

    def _absorb(self, items: list[list[Change] | Lost]) -> list[LogEvent]:
        """Memory and log with all that is later than memory; the events."""
        found = []
        for item in items:
            if isinstance(item, Lost):
                found += self._reread() if item.revision > self.revision + 1 else []
                continue
            known = self.revision
            for change in item:
                if change.kv.mod_revision > known:
                    if event := self._event(change, remembered=True):
                        self.follow(event)
                        self._remember(event)
                        found.append(event)
                    self.revision = change.kv.mod_revision
        return found

    def _event(self, change: Change, *, remembered: bool) -> LogEvent | None:
        """None for what is no object. remembered: memory has the state before it."""
        kv = change.kv
        try:
            resource, namespace, name = self._place(kv.key)
        except ValueError:
            return None
        before = self.get(resource, namespace, name) if remembered else None
        if before is None and change.prev_kv is not None:
            before = self._record(change.prev_kv)
        if change.type != "DELETE":
            record = self._record(kv)
            type_ = "ADDED" if kv.create_revision == kv.mod_revision else "MODIFIED"
            return LogEvent(type_, resource, record, before.obj if before else None) if record else None
        return _deletion(resource, before, kv.mod_revision) if before else None

    def _reread(self) -> list[LogEvent]:
        """History has a gap: what is there now against memory. Positions before it are Expired."""
        revision = self._client.under(
            self._objects, self._objects, limit=1, timeout_s=COMMIT_S
        ).header.revision
        now = {(resource, record.key): record for record, resource in self._stored(revision)}
        found = []
        for resource, table in self._tables.items():
            for record in list(table.records.values()):
                if (resource, record.key) not in now:
                    found.append(_deletion(resource, record, revision))
        for (resource, key), record in now.items():
            before = self.get(resource, *key)
            if before is None or before.revision != record.revision:
                type_ = "MODIFIED" if before else "ADDED"
                found.append(LogEvent(type_, resource, record, before.obj if before else None))
        for event in sorted(found, key=lambda e: e.record.revision):
            self.follow(event)
        self._log.clear()
        self.revision = self.floor = revision
        return found

    # --- writing ---------------------------------------------------------------------------------

    def _number(self) -> bytes:
        self._commits += 1
        return f"{self._life}-{self._commits}".encode()

    def _commit(self, transaction: Transaction, before: int) -> list[LogEvent]:
        events = list(_net(transaction))
        if not events:
            transaction.undo()
            self.revision = before
            return []
        number = self._number()
        revision = self._write(self._request(transaction, events, number), number)
        if revision == before + 1:
            for event in events:
                self._remember(event)
            self._trim(before)
            return events
        # Somebody wrote in between, be it under another prefix: the watch knows, and has ours after it.
        transaction.undo()
        self.revision = before
        for event in events:
            _stamp(event.record, revision)
        if not self._seen(revision):
            raise ApiError("etcd has stored it, but its watch does not show it", code=504, reason="Timeout")
        return self._absorb(self._follower.take())

    def _seen(self, revision: int) -> bool:
        if self._follower.await_revision(revision, _ATTEMPT_S):
            return True
        self._follower.reconnect()
        return self._follower.await_revision(revision, _CATCH_UP_S)

    def _key(self, resource: str, key: tuple[str, str]) -> bytes:
        return self._objects + f"{resource}/{key[0]}/{key[1]}".encode()

    def _request(self, transaction: Transaction, events: list[LogEvent], number: bytes) -> dict[str, Any]:
        before = {(resource, key): state for resource, key, state in transaction.replaced()}
        compare: list[Obj] = []
        success: list[Obj] = [{"request_put": {"key": self._writer, "value": number}}]
        failure: list[Obj] = [{"request_range": {"key": self._writer}}]
        for event in events:
            key, old = self._key(event.resource, event.record.key), before[event.resource, event.record.key]
            revision = str(old.revision if old else 0)
            compare.append({"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision})
            failure.append({"request_range": {"key": key, "keys_only": True}})
            if event.type == "DELETED":
                success.append({"request_delete_range": {"key": key}})
            else:
                success.append({"request_put": {"key": key, "value": _value(event.record.obj)}})
        return {"compare": compare, "success": success, "failure": failure}

    def _write(self, request: dict[str, Any], number: bytes) -> int:
        """The revision. Raises RacedError, ApiError."""
        now_s = time.monotonic()
        if now_s < self._refused_until_s:
            raise ApiError("etcd does not answer", code=503, reason="ServiceUnavailable")
        deadline_s = now_s + (self._commit_s if self._healthy else _AWAY_S)
        while True:
            left_s = max(deadline_s - time.monotonic(), _AWAY_S)
            try:
                answer = self._client.attempt("kv/txn", request, TxnAnswer, min(left_s, _ATTEMPT_S))
                break
            except EtcdAwayError as error:
                if time.monotonic() + _PAUSE_S > deadline_s:
                    self._healthy, self._refused_until_s = False, time.monotonic() + _REFUSE_S
                    why = f"{error}; what was to be written may or may not have been"
                    raise ApiError(why, code=504, reason="Timeout") from None
                time.sleep(_PAUSE_S)
            except EtcdError as error:
                raise _refusal(error) from None
        self._healthy = True
        if answer.succeeded:
            return answer.header.revision
        return self._landed(answer, number)

    def _landed(self, answer: TxnAnswer, number: bytes) -> int:
        """The revision of a commit that was done although its answer was lost. Raises RacedError."""
        writer, *others = [each.response_range for each in answer.responses]
        if writer and writer.kvs and writer.kvs[0].value == number:
            return writer.kvs[0].mod_revision
        self._behind = max((kv.mod_revision for one in others if one for kv in one.kvs), default=0)
        raise RacedError(
            "another API server has written the object first; please apply your changes to the latest version"
        )

    # --- the log ---------------------------------------------------------------------------------

    def _remember(self, event: LogEvent) -> None:
        before = encode(footprint(event.resource, event.before)) if event.before else None
        record = event.record
        self._log.append(_Logged(record.revision, event.resource, event.type, record.data, before))

    def _trim(self, before: int) -> None:
        """The log's length, here and in etcd."""
        if before // _TRIM_EVERY == self.revision // _TRIM_EVERY and self._log_length >= _TRIM_EVERY:
            return
        floor = self.revision - self._log_length
        if floor <= self.floor:
            return
        while self._log and self._log[0].revision <= floor:
            self._log.popleft()
        self.floor = floor
        with suppress(EtcdAwayError):
            self._client.compact(floor + 1, timeout_s=_AWAY_S)

    def events_since(self, resource: str, revision: int) -> list[LogEvent]:
        self.check_kept(revision)
        found = []
        for logged in reversed(self._log):
            if logged.revision <= revision:
                break
            if logged.resource == resource:
                found.append(revived(*logged))
        return found[::-1]

    def close(self) -> None:
        self._wake = None
        self._follower.close()
        self._client.close()


def remove(address: StoreAddress, prefix: str, connect: Connect = connect) -> None:
    """All keys of prefix. Raises EtcdAwayError, EtcdError."""
    client = EtcdClient(address, connect)
    try:
        client.delete_under(f"{prefix}/".encode(), timeout_s=COMMIT_S)
    finally:
        client.close()


def occupied(address: StoreAddress, prefix: str, connect: Connect = connect) -> bool:
    """Whether there are objects. Raises EtcdAwayError, EtcdError."""
    client = EtcdClient(address, connect)
    try:
        at = f"{prefix}/".encode()
        return bool(client.under(at, at, limit=1, timeout_s=_ATTEMPT_S).kvs)
    finally:
        client.close()


def _net(transaction: Transaction) -> Iterator[LogEvent]:
    """One event for each object: etcd writes a key once in a transaction."""
    last = {(event.resource, event.record.key): event for event in transaction.events}
    for resource, key, before in transaction.replaced():
        event = last[resource, key]
        if before is None and event.type == "DELETED":
            continue
        type_ = event.type if event.type == "DELETED" else "MODIFIED" if before else "ADDED"
        yield LogEvent(type_, resource, event.record, before.obj if before else None)


def _value(obj: Obj) -> bytes:
    metadata = {key: value for key, value in obj["metadata"].items() if key != "resourceVersion"}
    return encode({**obj, "metadata": metadata})


def _stamp(record: Record, revision: int) -> None:
    record.revision = revision
    record.obj["metadata"]["resourceVersion"] = str(revision)
    record.data = encode(record.obj)


def _deletion(resource: str, last: Record, revision: int) -> LogEvent:
    obj = {**last.obj, "metadata": dict(last.obj["metadata"])}
    record = Record(last.namespace, last.name, revision, obj, b"")
    _stamp(record, revision)
    return LogEvent("DELETED", resource, record, last.obj)


def _refusal(error: EtcdError) -> ApiError:
    if "too large" in str(error) or "larger than max" in str(error):
        return ApiError(f"etcd: {error}", code=413, reason="RequestEntityTooLarge")
    return ApiError(f"etcd: {error}", code=500)
