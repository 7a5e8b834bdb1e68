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

_pack = msgspec.msgpack.Encoder().encode


class Shelf(MutableMapping[Key, T], Generic[T]):
    """Objects of one kind by (namespace, name)."""

    def __init__(self, kind: type[T]) -> None:
        self._packed: dict[Key, bytes] = {}
        self._unpack = msgspec.msgpack.Decoder(kind).decode

    def __getitem__(self, key: Key) -> T:
        return self._unpack(self._packed[key])

    def __setitem__(self, key: Key, value: T) -> None:
        self._packed[key] = _pack(value)

    def __delitem__(self, key: Key) -> None:
        del self._packed[key]

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def get(self, key: Key, default: Any = None) -> Any:
        packed = self._packed.get(key)
        return self._unpack(packed) if packed is not None else default

    def holds(self, key: Key, value: T) -> bool:
        """That very object is there. False may also mean that its fields were written in another order."""
        return self._packed.get(key) == _pack(value)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


class Pile(Sequence[T], Generic[T]):
    """Objects of one kind in their order; equal to any sequence of equal objects. keys: theirs."""

    def __init__(self, kind: type[T], objects: Iterable[T] = ()) -> None:
        self.keys: list[Key] = []
        self._packed: list[bytes] = []
        self._unpack = msgspec.msgpack.Decoder(kind).decode
        for each in objects:
            self.append(each)

    def append(self, value: T) -> None:
        self.keys.append(value.key)
        self._packed.append(_pack(value))

    def __iter__(self) -> Iterator[T]:
        return map(self._unpack, self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return list(map(self._unpack, self._packed[index]))
        return self._unpack(self._packed[index])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))
