"""What a dump of the service maps says about lists: which id answers for a frontend, and in which order.

The kernel knows numbers only; that id 42 is the list of a certain service follows from the frontend that
leads to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import Final

from podlane.compile.tables import Backend, FrontendKey, NodePortKey
from podlane.kernel.nft import service_elements as pack
from podlane.kernel.nft import skeleton
from podlane.kernel.nft.codec import Element, unpack_mark
from podlane.model import marks
from podlane.model.addresses import Family, family_of

_MAPS: Final = frozenset(
    {
        skeleton.FRONTENDS,
        skeleton.NODE_PORTS,
        skeleton.SHORT_CIRCUITS,
        skeleton.ENDPOINTS,
        skeleton.PICKS,
        skeleton.SLOTS,
    }
)
_MARK_BYTES: Final = 4

Dump = Mapping[tuple[Family, str], Iterable[Element]]


class KernelLists:
    """Elements that do not have the expected shape (another version's) are passed over."""

    def __init__(self, dump: Dump) -> None:
        self._maps: dict[tuple[Family, str], dict[bytes, bytes]] = {
            place: {element.key: element.data or b"" for element in elements}
            for place, elements in dump.items()
            if place[1] in _MAPS
        }
        self._slots: dict[tuple[Family, int], dict[int, Backend]] = {}
        for (family, name), held in self._maps.items():
            if name == skeleton.SLOTS:
                for key, data in held.items():
                    with suppress(ValueError):
                        list_id, slot = pack.unpack_slot(key)
                        self._slots.setdefault((family, list_id), {})[slot] = pack.unpack_backend(data)

    def id_of(self, key: FrontendKey | NodePortKey) -> int:
        """0 when the kernel has no such frontend, or one without a list."""
        if isinstance(key, NodePortKey):
            place = key.family, skeleton.NODE_PORTS, pack.node_port(key, 0).key
        else:
            place = family_of(key.address), skeleton.FRONTENDS, pack.frontend(key, 0).key
        return self._list_id(*place)

    def short_circuit(self, family: Family, list_id: int) -> int:
        """The id of the cluster's list that a local list's short circuit leads to, or 0."""
        key = pack.short_circuit(list_id, 0).key
        return self._list_id(family, skeleton.SHORT_CIRCUITS, key)

    def layout(self, family: Family, list_id: int) -> tuple[tuple[Backend, ...], dict[Backend, int]]:
        """The endpoints in their order of index up to the first gap, and their affinity slots."""
        slots = self._slots.get((family, list_id), {})
        layout: list[Backend] = []
        with suppress(ValueError):
            layout.extend(self._in_order(family, list_id, slots))
        return tuple(layout), {backend: slot for slot, backend in slots.items()}

    def _in_order(self, family: Family, list_id: int, slots: Mapping[int, Backend]) -> Iterator[Backend]:
        """Raises ValueError at what is none of ours."""
        endpoints, picks = (
            self._maps.get((family, name), {}) for name in (skeleton.ENDPOINTS, skeleton.PICKS)
        )
        for index in count():
            key = pack.index_key(list_id, index)
            backend = None
            if data := endpoints.get(key):
                backend = pack.unpack_backend(data)
            elif len(data := picks.get(key, b"")) == _MARK_BYTES:
                backend = slots.get(marks.COUNT.of(unpack_mark(data)))
            if backend is None:
                return
            yield backend

    def _list_id(self, family: Family, name: str, key: bytes) -> int:
        data = self._maps.get((family, name), {}).get(key, b"")
        return marks.LIST.of(unpack_mark(data)) if len(data) == _MARK_BYTES else 0
