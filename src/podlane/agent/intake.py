"""News of the API as changes of what is known, and how far each kind has been seen and applied."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import Any

from podlane.compile.view import CLUSTER_WIDE, Change, View
from podlane.model.objects import KINDS, Object
from podlane.watch.reflector import Delete, News, Part, Replace, Source, Upsert

log = logging.getLogger(__name__)


def sources(reads: frozenset[str]) -> list[Source]:
    """What to follow: the kinds that capabilities read. Pods of all nodes are peers of policies."""
    return [Source(kind) for kind in sorted(reads) if kind in KINDS]


def changes(kind: str, news: News[Object], view: View) -> Iterator[Change]:
    """Of what is known when their turn comes: taken one by one, each after the one before was applied."""
    known = view.objects(kind)
    if isinstance(news, Upsert):
        yield Change(kind, None, news.object)
    elif isinstance(news, Delete):
        yield from _gone(kind, [_local(kind, news.key)], view)
    elif isinstance(news, Replace):
        there = {_local(kind, key) for key in news.keys}
        yield from _gone(kind, [key for key in known if key not in there], view)
    if isinstance(news, (Part, Replace)):
        for each in news.objects:
            yield Change(kind, None, each)


def _gone(kind: str, keys: list[Any], view: View) -> Iterator[Change]:
    known = view.objects(kind)
    for key in keys:
        if kind == "Node" and key == view.me.name:
            # Deleted and registered anew is what kubelets do; the network does not go for that.
            log.warning("the Node %s is gone from the API; its network stays", key)
        elif key in known:
            yield Change(kind, known[key], None)


def _local(kind: str, key: tuple[str, str]) -> Any:
    """The reflector's (namespace, name) as the view's key."""
    return key[1] if kind in CLUSTER_WIDE else key


class Versions:
    """How far one kind has been seen, and how much of that has been applied.

    error: why it cannot be read now, "" if it can; malformed: (namespace, name) -> what is wrong.
    """

    def __init__(self) -> None:
        self.error = ""
        self.malformed: dict[tuple[str, str], str] = {}
        self._waiting: deque[tuple[int, str]] = deque()  # (submission it came with, version)
        self._applied = ""

    def saw(self, submission: int, version: str) -> None:
        if self._waiting and self._waiting[-1][0] == submission:
            self._waiting.pop()
        self._waiting.append((submission, version))

    def applied(self, submission: int) -> str:
        """The newest version that came with, or before, a submission that has been applied; "" for none."""
        while self._waiting and self._waiting[0][0] <= submission:
            self._applied = self._waiting.popleft()[1]
        return self._applied
