"""The rows of all units, merged into tables.

Several units may want one key of a table:

- **equal rows are counted**: the row stays until the last unit that wants it goes;
- **rows that contradict are resolved by one rule: the unit of the older object wins** (earlier
  `since`; then the smaller unit key, so that the answer does not depend on who came first). The loser
  is reported, and its row comes back by itself when the winner goes.

`put` replaces one unit's rows, `take` returns what that changed since the last `take`. Both cost what
the touched rows cost; `compared` counts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from podlane.compile.tables import NOTHING, Rows, Table
from podlane.delta import Change, Delta

_ABSENT: Final = object()


class UnitKey(NamedTuple):
    """The smallest thing that compiles on its own: ("vxlan", "peer", "node-2"), say.

    what and name: the capability's own words; namespace: "" for what has none.
    """

    capability: str
    what: str
    name: str = ""
    namespace: str = ""

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.capability} {self.what} {where}".rstrip()


class Compiled(NamedTuple):
    """One unit's rows, how old the object behind them is, and why some of it could not be done.

    since: creationTimestamp, "" for what is older than every object (the node's own facts).
    refused: sentences that name the object and what would work.
    """

    rows: Rows
    since: str = ""
    refused: tuple[str, ...] = ()


class Contradiction(NamedTuple):
    table: Table
    key: Any
    winner: UnitKey
    losers: tuple[UnitKey, ...]

    def __str__(self) -> str:
        lost = ", ".join(map(str, self.losers))
        return f"{self.table} {_show(self.key)}: {self.winner} is older and has it; {lost} must do without"


class Store:
    def __init__(self) -> None:
        self.compared = 0
        self._units: dict[UnitKey, _Held] = {}
        self.complaints = 0  # grows with every change of what is refused, or contradicts
        self._refused: dict[UnitKey, tuple[str, ...]] = {}
        self._tables: dict[Table, dict[Any, Any]] = {table: {} for table in Table}
        # One claimant is the rule, so it is kept bare; several are kept with the rows they want.
        self._claims: dict[Table, dict[Any, UnitKey | dict[UnitKey, Any]]] = {table: {} for table in Table}
        self._contradictions: dict[tuple[Table, Any], Contradiction] = {}
        self._before: dict[Table, dict[Any, Any]] = {table: {} for table in Table}

    @property
    def tables(self) -> Mapping[Table, Mapping[Any, Any]]:
        """What the node should hold now. Live."""
        return self._tables

    @property
    def contradictions(self) -> list[Contradiction]:
        return list(self._contradictions.values())

    @property
    def refused(self) -> dict[UnitKey, tuple[str, ...]]:
        """Per unit, what could not be compiled and why."""
        return dict(self._refused)

    def owner(self, table: Table, key: Any) -> UnitKey | None:
        """The unit whose row stands under that key; of several that want the same one the oldest."""
        held = self._claims[table].get(key)
        return min(held, key=self._age) if isinstance(held, dict) else held

    def put(self, unit: UnitKey, compiled: Compiled) -> None:
        """Replace what `unit` wants. Compiled with no rows and nothing refused forgets it."""
        old = self._units.get(unit, _NOTHING_HELD)
        keys = {table: tuple(rows) for table, rows in compiled.rows.items() if rows}
        if keys:
            self._units[unit] = _Held(compiled.since, tuple(keys.items()))
        else:
            self._units.pop(unit, None)
        if compiled.refused:
            self.complaints += self._refused.get(unit) != compiled.refused
            self._refused[unit] = compiled.refused
        else:
            self.complaints += self._refused.pop(unit, None) is not None
        same_age = old.since == compiled.since
        had = dict(old.keys)
        for table in {**had, **keys}:
            before = {key: self._row(unit, table, key) for key in had.get(table, ())}
            after = compiled.rows.get(table, NOTHING)
            for key in {**before, **after}:
                self.compared += 1
                was, now = before.get(key, _ABSENT), after.get(key, _ABSENT)
                if was is _ABSENT or now is _ABSENT or not same_age or was != now:
                    self._claim(table, key, unit, now)

    def take(self) -> dict[Table, Delta[Any, Any]]:
        """Net changes of the tables since the last call; tables without any are left out."""
        changes: dict[Table, Delta[Any, Any]] = {}
        for table, touched in self._before.items():
            if not touched:
                continue
            added, changed, removed = {}, {}, {}
            current = self._tables[table]
            for key, old in touched.items():
                new = current.get(key, _ABSENT)
                if old is _ABSENT and new is not _ABSENT:
                    added[key] = new
                elif new is _ABSENT and old is not _ABSENT:
                    removed[key] = old
                elif old is not _ABSENT and old != new:
                    changed[key] = Change(old, new)
            self._before[table] = {}
            if found := Delta(added, changed, removed):
                changes[table] = found
        return changes

    def _claim(self, table: Table, key: Any, unit: UnitKey, row: Any) -> None:
        """`unit` wants this row of the key, or none any more."""
        rows, claims = self._tables[table], self._claims[table]
        self._before[table].setdefault(key, rows.get(key, _ABSENT))
        held = claims.get(key)
        if isinstance(held, dict):
            if row is _ABSENT:
                held.pop(unit, None)
            else:
                held[unit] = row
            self._settle(table, key, held)
        elif held is not None and held != unit:
            if row is not _ABSENT:
                both = claims[key] = {held: rows[key], unit: row}
                self._settle(table, key, both)
        elif row is not _ABSENT:
            claims[key], rows[key] = unit, row
        elif held is not None:
            del claims[key], rows[key]

    def _settle(self, table: Table, key: Any, held: dict[UnitKey, Any]) -> None:
        """Which of several units has the key."""
        self.complaints += self._contradictions.pop((table, key), None) is not None
        winner = min(held, key=self._age)
        row = self._tables[table][key] = held[winner]
        if len(held) == 1:
            self._claims[table][key] = winner
        elif losers := tuple(sorted(unit for unit, other in held.items() if other != row)):
            self._contradictions[table, key] = Contradiction(table, key, winner, losers)
            self.complaints += 1

    def _age(self, unit: UnitKey) -> tuple[str, UnitKey]:
        return self._units[unit].since, unit

    def _row(self, unit: UnitKey, table: Table, key: Any) -> Any:
        held = self._claims[table][key]
        return held[unit] if isinstance(held, dict) else self._tables[table][key]


class _Held(NamedTuple):
    """A unit's keys. The rows are in the tables, or with the claims of those who contradict each other."""

    since: str
    keys: tuple[tuple[Table, tuple[Any, ...]], ...]


_NOTHING_HELD: Final = _Held("", ())


def _show(key: Any) -> str:
    return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)
