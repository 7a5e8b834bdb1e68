"""Desired against actual: the only place that decides what changes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Change(NamedTuple, Generic[V]):
    old: V
    new: V


class Delta(NamedTuple, Generic[K, V]):
    """added, changed and removed rows. Empty deltas are false."""

    added: dict[K, V]
    changed: dict[K, Change[V]]
    removed: dict[K, V]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __len__(self) -> int:
        return len(self.added) + len(self.changed) + len(self.removed)


def delta(desired: Mapping[K, V], actual: Mapping[K, V]) -> Delta[K, V]:
    """What to do to `actual` so that it equals `desired`."""
    added: dict[K, V] = {}
    changed: dict[K, Change[V]] = {}
    for key, row in desired.items():
        if key not in actual:
            added[key] = row
        elif actual[key] != row:
            changed[key] = Change(actual[key], row)
    removed = {key: row for key, row in actual.items() if key not in desired}
    return Delta(added, changed, removed)


def news(changes: Delta[K, V] | None) -> Iterator[tuple[K, V | None]]:
    """(key, new row) of each change, None for removed ones; those come first."""
    if changes is not None:
        for key in changes.removed:
            yield key, None
        for key, change in changes.changed.items():
            yield key, change.new
        yield from changes.added.items()


def merge(rows: dict[K, V], changes: Delta[K, V] | None) -> None:
    """Bring `rows` to where the changes lead."""
    for key, row in news(changes):
        if row is None:
            rows.pop(key, None)
        else:
            rows[key] = row
