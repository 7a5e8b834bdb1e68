"""From changes of the service tables to the socket maps: right at the end, and at every moment on the way."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.compile import socket_lb
from podlane.compile.tables import Backend, Table
from podlane.delta import Delta, delta
from podlane.kernel.bpf import layout
from podlane.kernel.bpf.socket_state import Operation, SocketState, arrange
from podlane.model.addresses import Family, Protocol
from tests.property.service_tables import Tables, backend, tables

EMPTY: Tables = {Table.SETS: {}, Table.BACKENDS: {}, Table.FRONTENDS: {}, Table.NODE_PORTS: {}}
Maps = dict[str, dict[bytes, bytes]]


def write(maps: Maps, operation: Operation) -> None:
    if operation.value is None:
        maps[operation.map].pop(operation.key, None)
    else:
        maps[operation.map][operation.key] = operation.value


def answers(maps: Maps) -> dict[tuple[str, bytes], Counter[Any]]:
    """What the programs may choose for each frontend: as they look it up. None where nftables answers."""
    found = {}
    for name in (layout.FRONTENDS, layout.NODE_PORTS):
        for key, number in maps[name].items():
            head = maps[layout.LISTS].get(number)
            count = int.from_bytes(head[:4], "little") if head else 0
            ends = (maps[layout.BACKENDS].get(number + i.to_bytes(8, "little")) for i in range(count))
            found[name, key] = Counter(layout.unpack_end(each) if each else None for each in ends)
    return found


def wanted(desired: Tables) -> dict[tuple[str, bytes], Counter[Any]]:
    found = {}
    for table in (Table.FRONTENDS, Table.NODE_PORTS):
        for key, row in desired[table].items():
            at = socket_lb.at_socket(key.protocol, row, desired[Table.BACKENDS])
            if at.list is not None:
                place = layout.frontend(key) if table is Table.FRONTENDS else layout.node_port(key)
                name = layout.FRONTENDS if table is Table.FRONTENDS else layout.NODE_PORTS
                found[name, place] = Counter(desired[Table.BACKENDS][at.list].backends)
    return found


@settings(deadline=None, max_examples=150)
@given(st.lists(tables(), min_size=1, max_size=6))
def test_every_moment_has_the_old_endpoints_the_new_or_nothing(history: list[Tables]) -> None:
    state, last = SocketState(Family), EMPTY
    maps: Maps = {name: {} for name in layout.DESIRED}
    for desired in history:
        changes = {t: found for t in EMPTY if (found := delta(desired[t], last[t]))}
        before, after = wanted(last), wanted(desired)
        for operation in state.put(changes).ordered():
            write(maps, operation)
            for place, choices in answers(maps).items():
                allowed = {None, *before.get(place, ()), *after.get(place, ())}
                assert set(choices) <= allowed, (place, operation)
        assert answers(maps) == after
        assert maps == {
            name: {key: each.value for key, each in found.items()} for name, found in state.entries().items()
        }
        last = desired
    for operation in state.put({t: delta(EMPTY[t], last[t]) for t in EMPTY}).ordered():
        write(maps, operation)
    assert maps == {name: {} for name in layout.DESIRED}


@settings(deadline=None, max_examples=100)
@given(st.lists(tables(), min_size=1, max_size=4))
def test_a_start_finds_its_lists_in_the_order_they_have(history: list[Tables]) -> None:
    state, last = SocketState(Family), EMPTY
    for desired in history:
        state.put({t: delta(desired[t], last[t]) for t in EMPTY})
        last = desired
    again = SocketState(Family)
    entries = state.entries()
    again.adopt(
        {name: {key: each.value or b"" for key, each in found.items()} for name, found in entries.items()}
    )
    again.put({t: Delta(dict(last[t]), {}, {}) for t in EMPTY}, silent=True)
    assert again.entries() == entries


@given(st.lists(st.integers(1, 5), max_size=8), st.lists(st.integers(1, 5), max_size=8))
def test_few_places_change(current: list[int], chosen: list[int]) -> None:
    old = tuple(backend(Family.IPV4, n) for n in current)
    new = tuple(backend(Family.IPV4, n) for n in chosen)
    arranged = arrange(old, new)
    assert Counter(arranged) == Counter(new)
    kept = sum((Counter(old[: len(new)]) & Counter(new)).values())
    assert sum(a == b for a, b in zip(old, arranged, strict=False)) == kept


@settings(deadline=None, max_examples=100)
@given(tables(), tables())
def test_what_may_go_on_is_never_ended(first: Tables, second: Tables) -> None:
    """A connection ends only if its list is still there, and does not keep its endpoint."""
    state = SocketState(Family)
    state.put({t: delta(first[t], EMPTY[t]) for t in EMPTY})
    numbers = dict(state.names)
    plan = state.put({t: delta(second[t], first[t]) for t in EMPTY})
    for number, (protocol, keep) in plan.gone.lists.items():
        key = numbers[number]
        row = second[Table.BACKENDS].get(key)
        assert protocol is key.protocol
        assert row is not None or protocol is Protocol.UDP
        serving: tuple[Backend, ...] = row.backends + row.still_serving if row else ()
        assert keep == set(serving)
        assert set(first[Table.BACKENDS][key].backends) - keep
