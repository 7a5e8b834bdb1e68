"""When Python looks for garbage, and what it gives back.

An agent reads everything once and then changes little of it. While it reads, looking for cycles among
objects that stay is a fifth of the work, and a second at a time on a large cluster: only young objects are
looked at. What is there when it is ready is never looked at again.
"""

from __future__ import annotations

import ctypes
import gc

# Objects that come before the youngest are looked at, how often that happens before older ones are, and
# those before all are.
_READING = (20_000, 20, 1_000)
_SETTLED = (20_000, 20, 20)


def relax() -> None:
    """At the start of the process."""
    gc.set_threshold(*_READING)


def settle() -> None:
    """What was read at the start stays for good: keep the collector off it, give the rest back."""
    gc.collect(1)
    gc.freeze()
    gc.set_threshold(*_SETTLED)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
