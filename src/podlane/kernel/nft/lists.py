"""How an endpoint list lies in the kernel: which endpoint stands at which index.

The kernel draws an index below a constant (numgen random mod N), one chain for each N. Up to 512
endpoints N is their number and every endpoint has its indexes to itself. Longer lists get a table of
slots in which endpoints repeat, at least eight times, so that the shares differ by one in eight at most.

Which endpoint has which index means nothing, so a change moves as few as it can: one endpoint more is one
element more, one less is two elements.

Where the index is a hash of the client (jhash … mod M) it means everything: the table is that of
compile/hashing.py, the same on all nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from podlane.compile import hashing
from podlane.compile.tables import Backend, BackendList
from podlane.model import marks
from podlane.model.config import HASH_TABLE_SIZES

EXACT: Final = 512
_REPEATS: Final = 8
_SMALLEST: Final = 2 * EXACT * _REPEATS
LONGEST: Final = 32768

SLOT_TABLES: Final = {EXACT + 1 + n: _SMALLEST << n for n in range(6)}
"""code -> slots: 513 has 8192, for up to 1024 endpoints, and so on up to 32768 endpoints."""


_FIRST_HASH: Final = 600
HASH_TABLES: Final = {_FIRST_HASH + 2 * n: size for n, size in enumerate(HASH_TABLE_SIZES)}
"""code -> slots of a table chosen from by the client's address; the code above it: by address and port"""


class TooLong(ValueError):
    """A list of more endpoints than there is a chain for."""


class Size(NamedTuple):
    """code: what the conntrack mark's COUNT field says; slots: the modulus of that chain."""

    code: int
    slots: int


def size_for(endpoints: int) -> Size:
    """Raises TooLong."""
    if endpoints <= EXACT:
        return Size(endpoints, endpoints)
    for code, slots in SLOT_TABLES.items():
        if endpoints * _REPEATS <= slots:
            return Size(code, slots)
    raise TooLong(f"{endpoints} endpoints; {LONGEST} is the most for one list")


def modulus(code: int) -> int:
    """The number below which the chain of a code draws, or hashes."""
    return SLOT_TABLES.get(code) or HASH_TABLES.get(code & ~1, code)


def is_hash(code: int) -> bool:
    return code & ~1 in HASH_TABLES


def hashes_port(code: int) -> bool:
    """Of a code that is a hash."""
    return bool(code & 1)


def lay(row: BackendList, current: Sequence[Backend]) -> tuple[int, tuple[Backend, ...]]:
    """(code, table) of a list that lies as `current` now. Raises TooLong."""
    if not row.backends:
        return 0, ()
    if not row.slots:
        return size_for(len(row.backends)).code, tuple(arrange(current, row.backends))
    return _FIRST_HASH + 2 * HASH_TABLE_SIZES.index(row.slots) + row.by_port, hashing.table_of(row)


def arrange(current: Sequence[Backend | None], wanted: Sequence[Backend]) -> list[Backend]:
    """A table for `wanted` that differs from `current` in as few places as possible.

    Each endpoint gets its fair share of the slots: of an exact table as often as it is wanted.
    """
    slots = size_for(len(wanted)).slots
    if slots == len(wanted) == len(free := dict.fromkeys(wanted)):
        return _exact(current, free)
    quota = {b: divmod(slots * n, len(wanted)) for b, n in Counter(wanted).items()}
    spare = slots - sum(whole for whole, _ in quota.values())
    used: Counter[Backend] = Counter()
    table: list[Backend | None] = [None] * slots
    for place, backend in enumerate(current[:slots]):
        if backend is None or backend not in quota:
            continue
        whole, rest = quota[backend]
        if used[backend] >= whole:
            if not rest or not spare or used[backend] > whole:
                continue
            spare -= 1
        used[backend] += 1
        table[place] = backend
    missing = _missing(quota, used, spare)
    return [backend if backend is not None else next(missing) for backend in table]


def _exact(current: Sequence[Backend | None], free: dict[Backend, None]) -> list[Backend]:
    """One slot for each of `free`, which is used up."""
    table: list[Backend | None] = [None] * len(free)
    for place, backend in enumerate(current[: len(free)]):
        if backend in free:
            del free[backend]
            table[place] = backend
    missing = iter(free)
    return [backend if backend is not None else next(missing) for backend in table]


def _missing(
    quota: Mapping[Backend, tuple[int, int]], used: Mapping[Backend, int], spare: int
) -> Iterator[Backend]:
    """What fills the gaps: first everyone's whole share, then the rest where there is a remainder."""
    for backend, (whole, _) in quota.items():
        for _ in range(whole - used.get(backend, 0)):
            yield backend
    for backend, (whole, rest) in quota.items():
        if rest and spare and used.get(backend, 0) <= whole:
            spare -= 1
            yield backend


def assign_slots(current: Mapping[Backend, int], wanted: Sequence[Backend]) -> dict[Backend, int]:
    """Affinity slots: an endpoint keeps its own as long as it is in the list. Raises TooLong."""
    kept = {backend: current[backend] for backend in wanted if backend in current}
    taken = set(kept.values())
    free = (slot for slot in range(marks.COUNT.largest + 1) if slot not in taken)
    for backend in wanted:
        if backend not in kept:
            slot = next(free, None)
            if slot is None:
                raise TooLong(f"{marks.COUNT.largest + 1} is the most endpoints with session affinity")
            kept[backend] = slot
    return kept
