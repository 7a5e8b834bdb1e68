"""When Python looks for garbage, and what it gives back.

An agent reads everything once and then changes little of it. While it reads, looking for cycles among
objects that stay is a fifth of the work; afterwards each look at all of them would be a pause of a
tenth of a second on a large cluster.
"""

from __future__ import annotations

import ctypes
import gc

# Objects that come before the youngest are looked at, and how often that happens before older ones are.
_THRESHOLDS = (20_000, 20, 20)


def relax() -> None:
    """At the start of the process."""
    gc.set_threshold(*_THRESHOLDS)


def settle() -> None:
    """What was read at the start stays for good: keep the collector off it, give the rest back."""
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
