"""Shares of endpoints that are new, or busier than others. Pure.

Least connections is approximated: the kernel draws by weight, and the weights follow what each endpoint has.
An endpoint's share falls with the square of its connections for its weight, so that what comes until the
next count evens them out without all of it going to one.

Slow start: the share of an endpoint that came grows with the time since.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from podlane.compile.tables import Backend
from podlane.model.local import WHOLE_SHARE

_FEW: Final = 32  # so many endpoints may have all sixteenths; more have fewer steps, or lists became long


def load_shares(counts: Mapping[Backend, int], weights: Mapping[Backend, int]) -> dict[Backend, int]:
    """counts: connections that endpoints have; weights: of all endpoints that may be chosen."""
    levels = {each: counts.get(each, 0) / weight for each, weight in weights.items() if weight}
    if not levels:
        return {}
    least = min(levels.values())
    # A few connections more or less are chance; the more there are, the more it takes to matter.
    slack = max(1.0, sum(levels.values()) / len(levels) / 8)
    parts = {each: (least + slack) / (level + slack) for each, level in levels.items()}
    return {each: _rounded(part * part, len(parts)) for each, part in parts.items()}


def _rounded(part: float, endpoints: int) -> int:
    step = 1
    while endpoints * WHOLE_SHARE > _FEW * WHOLE_SHARE * step and step < WHOLE_SHARE:
        step *= 2
    return max(step, round(part * WHOLE_SHARE / step) * step)


def age_share(age_s: float, slow_start_s: int) -> int:
    """From a sixteenth to the whole, evenly."""
    if age_s >= slow_start_s:
        return WHOLE_SHARE
    return max(1, min(WHOLE_SHARE, int(WHOLE_SHARE * age_s / slow_start_s)))


def combined(one: Mapping[Backend, int], other: Mapping[Backend, int]) -> dict[Backend, int]:
    """Both shares of every endpoint; nothing when all have the same."""
    found = {
        each: max(1, one.get(each, WHOLE_SHARE) * other.get(each, WHOLE_SHARE) // WHOLE_SHARE)
        for each in one.keys() | other.keys()
    }
    return found if len(set(found.values())) > 1 else {}


def matters(old: Mapping[Backend, int], new: Mapping[Backend, int]) -> bool:
    """The shares are worth a change of the lists: not for every sixteenth that wavers."""
    if not old or not new:
        return bool(old) != bool(new)
    return old.keys() != new.keys() or any(abs(old[each] - new[each]) > 1 for each in new)
