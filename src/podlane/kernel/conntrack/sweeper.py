"""Deletes stale flows: a dump walks the whole table, so it is done beside everything else."""

from __future__ import annotations

from collections.abc import Iterable

from podlane.kernel.conntrack.codec import Entry
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.conntrack.nudge import Nudger
from podlane.kernel.conntrack.stale import Fate, Stale
from podlane.kernel.sweeping import Gone, Sweeping
from podlane.model.addresses import Address


class Sweeper(Sweeping[Stale, Entry]):
    """Of the namespace netns_fd, or the calling thread's. gone: see Sweeping."""

    def __init__(self, netns_fd: int | None = None, gone: Gone | None = None) -> None:
        super().__init__("conntrack", Stale, gone)
        self._flows = Flows(netns_fd)
        self._nudger = Nudger(netns_fd)

    def close(self) -> None:
        super().close()
        self._flows.close()
        self._nudger.close()

    def _find(self, wanted: Stale) -> tuple[list[Entry], list[Entry]]:
        found = {entry for filter_ in wanted.filters() for entry in self._flows.list(filter_)}
        fates = {entry: wanted.fate(entry) for entry in found}
        certain = [entry for entry, fate in fates.items() if fate is Fate.GOES]
        return certain, [entry for entry, fate in fates.items() if fate is Fate.GOES_IF_GONE]

    def _delete(self, things: Iterable[Entry]) -> int:
        entries = list(things)
        deleted = self._flows.delete(entries)
        self._nudger.nudge(entries)
        return deleted

    def _endpoint(self, thing: Entry) -> Address:
        return thing.reply.source
