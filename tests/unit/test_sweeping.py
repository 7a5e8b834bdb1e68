"""The thread that ends connections outlives whatever goes wrong in one sweep."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from podlane.errors import KernelError
from podlane.kernel.sweeping import Sweeping
from podlane.model.addresses import Address


class Numbers(set[int]):
    """What is to end, here: numbers."""


class Sweeper(Sweeping[Numbers, int]):
    def __init__(self, faults: Iterable[Exception]) -> None:
        super().__init__("sweeper", Numbers, None)
        self.ended: list[int] = []
        self._faults = iter(faults)

    def _find(self, wanted: Numbers) -> tuple[list[int], list[int]]:
        if fault := next(self._faults, None):
            raise fault
        return sorted(wanted), []

    def _delete(self, things: Iterable[int]) -> int:
        found = list(things)
        self.ended += found
        return len(found)

    def _endpoint(self, thing: int) -> Address:
        raise AssertionError("nothing is doubtful here")


@pytest.mark.parametrize(
    "fault", [KernelError(1, "dump"), ValueError("a word no parser knows"), OSError(9, "bad")]
)
def test_a_sweep_that_fails_is_told_and_the_next_one_is_done(fault: Exception) -> None:
    sweeper = Sweeper([fault])
    try:
        sweeper.submit(Numbers({1}))
        assert sweeper.wait()
        told = sweeper.take_error()
        assert isinstance(told, KernelError)
        assert isinstance(fault, KernelError) or str(fault) in str(told)

        sweeper.submit(Numbers({2}))
        assert sweeper.wait()
        assert sweeper.ended == [2]
        assert sweeper.take_error() is None
    finally:
        sweeper.close()
