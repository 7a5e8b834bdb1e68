"""Tests here make anonymous network namespaces and send real packets inside them; root is required."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podlane.kernel import netns
from tests.netns.policy_lab import PolicyLab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="module", params=["routed", "bridge", "fused"])
def policy_lab(request: pytest.FixtureRequest) -> Iterator[PolicyLab]:
    """One for a module and link mode, and one where peers are always looked up together. A test begins with
    `become`."""
    fused = request.param == "fused"
    made = PolicyLab("routed", fuse_from=0) if fused else PolicyLab(request.param)
    try:
        made.build()
        yield made
    finally:
        made.close()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Shorter than pytest's own: a socket's path may be 107 bytes long."""
    with tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as where:
        yield Path(where)


@pytest.fixture
def namespaces() -> Iterator[Callable[[], int]]:
    """Makes namespaces that are gone after the test, whatever happened."""
    made: list[int] = []

    def make() -> int:
        made.append(netns.new())
        return made[-1]

    yield make
    for fd in made:
        os.close(fd)
