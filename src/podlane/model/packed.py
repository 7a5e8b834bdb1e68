"""Objects kept packed: a cluster has many of a kind, and a node looks at few of them at a time.

An EndpointSlice of ten endpoints is a hundred and fifty Python objects of 6 KiB, or 1 KiB of MessagePack. It
is unpacked, in some ten microseconds, when somebody asks for it. What comes out is equal to what went in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any, Generic, TypeVar, overload

import msgspec

from podlane.model.objects import Object

Key = tuple[str, str]
T = TypeVar("T", bound=Object)


class _Packer(Generic[T]):
    """In as many bytes as it takes: what an encoder hands out itself has room to spare."""

    def __init__(self, kind: type[T]) -> None:
        self._encode = msgspec.msgpack.Encoder().encode_into
        self._buffer = bytearray()
        self.unpack = msgspec.msgpack.Decoder(kind).decode

    def pack(self, value: object) -> bytes:
        self._encode(value, self._buffer)
        return bytes(self._buffer)


class Shelf(MutableMapping[Key, T], Generic[T]):
    """Objects of one kind by (namespace, name)."""

    def __init__(self, kind: type[T]) -> None:
        self._packed: dict[Key, bytes] = {}
        self._packer = _Packer(kind)

    def __getitem__(self, key: Key) -> T:
        return self._packer.unpack(self._packed[key])

    def __setitem__(self, key: Key, value: T) -> None:
        self._packed[key] = self._packer.pack(value)

    def __delitem__(self, key: Key) -> None:
        del self._packed[key]

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def get(self, key: Key, default: Any = None) -> Any:
        return self[key] if key in self._packed else default

    def holds(self, key: Key, value: T) -> bool:
        """That very object is there. False may also mean that its fields were written in another order."""
        return self._packed.get(key) == self._packer.pack(value)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


class _Labels:
    """Packed labels, and how many objects have them."""

    __slots__ = ("count", "packed")

    def __init__(self, packed: bytes) -> None:
        self.packed, self.count = packed, 0


class LabelledShelf(Shelf[T]):
    """As Shelf, of objects that many have the same labels: those are kept once. They are half of a pod."""

    def __init__(self, kind: type[T]) -> None:
        super().__init__(kind)
        self._labels: dict[bytes, _Labels] = {}
        self._labelled: dict[Key, _Labels] = {}
        self._label_packer = msgspec.msgpack.Decoder(dict[str, str]).decode

    def __getitem__(self, key: Key) -> T:
        found = super().__getitem__(key)
        # Just unpacked, in nobody else's hands.
        labels = self._label_packer(self._labelled[key].packed)
        msgspec.structs.force_setattr(found.metadata, "labels", labels)
        return found

    def __setitem__(self, key: Key, value: T) -> None:
        packed = self._packer.pack(value.metadata.labels)
        labels = self._labels.setdefault(packed, _Labels(packed))
        labels.count += 1
        if key in self._labelled:
            self._release(key)
        self._labelled[key] = labels
        self._packed[key] = self._packer.pack(_bare(value))

    def __delitem__(self, key: Key) -> None:
        super().__delitem__(key)
        self._release(key)
        del self._labelled[key]

    def holds(self, key: Key, value: T) -> bool:
        labels = self._labelled.get(key)
        if labels is None or labels.packed != self._packer.pack(value.metadata.labels):
            return False
        return super().holds(key, _bare(value))

    def _release(self, key: Key) -> None:
        labels = self._labelled[key]
        labels.count -= 1
        if not labels.count:
            del self._labels[labels.packed]


def key_of(value: Any) -> Key:
    """(namespace, name) of an object, or of one as it is in JSON."""
    if not isinstance(value, dict):
        return value.key  # type: ignore[no-any-return]
    metadata = value.get("metadata") or {}
    return metadata.get("namespace", ""), metadata.get("name", "")


def _bare(value: T) -> T:
    """Without labels."""
    metadata = msgspec.structs.replace(value.metadata, labels={})
    return msgspec.structs.replace(value, metadata=metadata)


class Pile(Sequence[T], Generic[T]):
    """Objects of one kind in their order; equal to any sequence of equal objects."""

    def __init__(self, kind: type[T], objects: Iterable[T] = ()) -> None:
        self._packed: list[bytes] = []
        self._packer = _Packer(kind)
        for each in objects:
            self.append(each)

    def append(self, value: T) -> None:
        self._packed.append(self._packer.pack(value))

    def __iter__(self) -> Iterator[T]:
        return map(self._packer.unpack, self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return list(map(self._packer.unpack, self._packed[index]))
        return self._packer.unpack(self._packed[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))
