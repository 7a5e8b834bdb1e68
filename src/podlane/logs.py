"""Log lines on stderr, as text for people or JSON for machines.

A line of JSON has `ts` (UTC, RFC 3339), `level`, `logger` and `msg`; and where there is something to say,
`node`, `generation` (the last one that the agent applied), `object` (KIND NS/NAME, or a row's table and key),
`error`, `exception` and `repeated`. These names stay. Secrets are taken out of all (podlane/redaction.py).

What says the same again within a minute is not written; the next line of it tells how many were left out. So
it is with a warning of one place in the code that concerns very many objects.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from podlane import redaction

QUIET_S: Final = 60.0
BURST: Final = 50
"""So many different warnings of one place in the code are written within QUIET_S."""

_FIELDS: Final = ("object", "error", "repeated")
_MOST_KNOWN: Final = 1000

_process: dict[str, Any] = {"node": "", "generation": None}


def about(node: str, generation: Callable[[], int] | None = None) -> None:
    """What every line of this process says beside its message."""
    _process.update(node=node, generation=generation)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "ts": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": redaction.text(record.getMessage()),
        }
        if _process["node"]:
            line["node"] = _process["node"]
        if _process["generation"] is not None:
            line["generation"] = _process["generation"]()
        for name in _FIELDS:
            if found := getattr(record, name, None):
                line[name] = found if isinstance(found, int) else redaction.text(str(found))
        if record.exc_info:
            line["exception"] = redaction.text(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        line = redaction.text(super().format(record))
        left_out = getattr(record, "repeated", 0)
        return f"{line} ({left_out} more like it were left out)" if left_out else line


class Repeats(logging.Filter):
    """now: a clock that only runs forward, in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        # By message, and by place: [since when, how many were written, how many were left out]
        self._same: OrderedDict[Any, list[float]] = OrderedDict()
        self._places: OrderedDict[Any, list[float]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno <= logging.DEBUG:
            return True
        now_s = self._now()
        place = record.pathname, record.lineno
        counts = [self._counted(self._same, (*place, record.getMessage()), 1, now_s)]
        if counts[0] >= 0 and record.levelno >= logging.WARNING:
            counts.append(self._counted(self._places, place, BURST, now_s))
        if min(counts) < 0:
            return False
        if left_out := int(max(counts)):
            record.repeated = left_out
        return True

    def _counted(self, known: OrderedDict[Any, list[float]], key: Any, most: int, now_s: float) -> float:
        """How many were left out before this one, or -1 if it is to be left out too."""
        found = known.get(key)
        if found is None or now_s - found[0] >= QUIET_S:
            left_out = found[2] if found else 0
            known[key] = [now_s, 1, 0]
            known.move_to_end(key)
            if len(known) > _MOST_KNOWN:
                known.popitem(last=False)
            return left_out
        if found[1] < most:
            found[1] += 1
            return 0
        found[2] += 1
        return -1


def formatter(form: str) -> logging.Formatter:
    """form: text or json."""
    return _Json() if form == "json" else _Text()


def configure(level: str, form: str = "text") -> None:
    """level: debug, info, warning or error; form: text or json."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(form))
    handler.addFilter(Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
