"""What a dump of the service maps says about lists: which id answers for a frontend, and in which order.

The kernel knows numbers only; that id 42 is the list of a certain service follows from the frontend that
leads to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podlane.compile.tables import Backend, FrontendKey, NodePortKey
from podlane.kernel.nft import service_elements as pack
from podlane.kernel.nft import skeleton
from podlane.kernel.nft.codec import Element, unpack_mark
from podlane.model import marks
from podlane.model.addresses import Family, family_of

Dump = Mapping[tuple[Family, str], Iterable[Element]]


class KernelLists:
    """Elements that do not have the expected shape (another version's) are passed over."""

    def __init__(self, dump: Dump) -> None:
        self._marks: dict[tuple[Family, str, bytes], int] = {}
        self._endpoints: dict[tuple[Family, int], dict[int, Backend]] = {}
        self._picks: dict[tuple[Family, int], dict[int, int]] = {}
        self._slots: dict[tuple[Family, int], dict[int, Backend]] = {}
        for (family, name), elements in dump.items():
            for element in elements:
                try:
                    self._take(family, name, element)
                except (ValueError, IndexError):
                    continue

    def _take(self, family: Family, name: str, element: Element) -> None:
        key, data = element.key, element.data or b""
        if name in (skeleton.FRONTENDS, skeleton.NODE_PORTS, skeleton.SHORT_CIRCUITS) and len(data) == 4:
            self._marks[family, name, key] = unpack_mark(data)
        elif name == skeleton.ENDPOINTS and len(key) == 8:
            list_id, index = pack.unpack_index(key)
            self._endpoints.setdefault((family, list_id), {})[index] = pack.unpack_backend(data)
        elif name == skeleton.PICKS and len(key) == 8 and len(data) == 4:
            list_id, index = pack.unpack_index(key)
            self._picks.setdefault((family, list_id), {})[index] = marks.COUNT.of(unpack_mark(data))
        elif name == skeleton.SLOTS and len(key) == 4:
            list_id, slot = pack.unpack_slot(key)
            self._slots.setdefault((family, list_id), {})[slot] = pack.unpack_backend(data)

    def id_of(self, key: FrontendKey | NodePortKey) -> int:
        """0 when the kernel has no such frontend, or one without a list."""
        if isinstance(key, NodePortKey):
            place = key.family, skeleton.NODE_PORTS, pack.node_port(key, 0).key
        else:
            place = family_of(key.address), skeleton.FRONTENDS, pack.frontend(key, 0).key
        return marks.LIST.of(self._marks.get(place, 0))

    def short_circuit(self, family: Family, list_id: int) -> int:
        """The id of the cluster's list that a local list's short circuit leads to, or 0."""
        key = pack.short_circuit(list_id, 0).key
        return marks.LIST.of(self._marks.get((family, skeleton.SHORT_CIRCUITS, key), 0))

    def layout(self, family: Family, list_id: int) -> tuple[tuple[Backend, ...], dict[Backend, int]]:
        """The endpoints in their order of index up to the first gap, and their affinity slots."""
        slots = self._slots.get((family, list_id), {})
        by_index = self._endpoints.get((family, list_id)) or {
            index: slots[slot]
            for index, slot in self._picks.get((family, list_id), {}).items()
            if slot in slots
        }
        layout: list[Backend] = []
        while (backend := by_index.get(len(layout))) is not None:
            layout.append(backend)
        return tuple(layout), {backend: slot for slot, backend in slots.items()}
