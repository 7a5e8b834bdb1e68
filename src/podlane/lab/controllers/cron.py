"""Cron schedules: "*/5 9-17 * * mon-fri", "@hourly". Pure.

Five fields: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday). When both days
are restricted, either is enough (crontab(5)).
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from msgspec import Struct

from podlane.errors import ConfigError

_MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_MONTHS = {
    "jan": 1,
    "feb": 2,
    "mar": 3,
    "apr": 4,
    "may": 5,
    "jun": 6,
    "jul": 7,
    "aug": 8,
    "sep": 9,
    "oct": 10,
    "nov": 11,
    "dec": 12,
}
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of week", 0, 7, _DAYS),
)
_ITEM = re.compile(r"(\*|\?|\w+(?:-\w+)?)(?:/(\d+))?")
_HORIZON = timedelta(days=5 * 366)
"""29 February comes within that."""


class Schedule(Struct, frozen=True):
    """Allowed values of each field. any_*: the field says nothing."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    def _on(self, at: datetime) -> bool:
        if at.month not in self.months:
            return False
        day, weekday = at.day in self.days, at.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return day and weekday
        return day or weekday

    def after(self, at: datetime) -> datetime | None:
        """The first minute later than at, in at's time zone; None if there is none in five years."""
        found = at.replace(second=0, microsecond=0) + timedelta(minutes=1)
        end = found + _HORIZON
        while found < end:
            if not self._on(found):
                found = found.replace(hour=0, minute=0) + timedelta(days=1)
            elif found.hour not in self.hours:
                found = found.replace(minute=0) + timedelta(hours=1)
            elif found.minute not in self.minutes:
                found += timedelta(minutes=1)
            else:
                return found
        return None


def parse(text: str) -> Schedule:
    """Raises ConfigError naming the field."""
    words = _MACROS.get(text.strip().lower(), text).split()
    if len(words) != len(_FIELDS):
        raise ConfigError(f"schedule {text!r}: {len(words)} fields, expected 5, as in '*/5 * * * *'")
    minutes, hours, days, months, weekdays = (
        _field(word, *field, text=text) for word, field in zip(words, _FIELDS, strict=True)
    )
    return Schedule(
        minutes,
        hours,
        days,
        months,
        frozenset(d % 7 for d in weekdays),
        any_day=words[2][0] in "*?",
        any_weekday=words[4][0] in "*?",
    )


def _field(word: str, name: str, low: int, high: int, names: dict[str, int], *, text: str) -> frozenset[int]:
    found: set[int] = set()
    for item in word.split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            raise ConfigError(
                f"schedule {text!r}: {name} {item!r}: write *, a number, a-b, or either with /n"
            )
        span, step = match[1], int(match[2] or 1)
        if span in "*?":
            first, last = low, high
        else:
            bounds = [_number(p, name, names, text) for p in span.split("-")]
            first = bounds[0]
            last = bounds[1] if len(bounds) == 2 else (high if match[2] else first)
        if not low <= first <= last <= high or step < 1:
            raise ConfigError(f"schedule {text!r}: {name} {item!r} is not within {low}-{high}")
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(word: str, name: str, names: dict[str, int], text: str) -> int:
    if word.isdigit():
        return int(word)
    if word.lower() in names:
        return names[word.lower()]
    raise ConfigError(f"schedule {text!r}: {name} {word!r} is neither a number nor a name")
