"""Cuts flows that policy denies by now, and takes back what it allows again.

Deleting an entry cuts nothing: the next packet of either side begins a new flow, and the side that is allowed
to begin one brings both ways back. So the entry stays and gets a label (model/marks.py), and a rule drops
what has it, or answers with a reset. Only flows that began while a rule named labels have room for one.

A flow is judged as its first packet was: by its own source, and by the endpoint that answers. What the node
itself sends is never judged.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from podlane.compile.policy_sim import Judge, PolicyFlow
from podlane.compile.tables import Direction, Table
from podlane.errors import KernelError, KernelNotFoundError
from podlane.kernel.conntrack import codec
from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.kernel.netlink import NETLINK_NETFILTER
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Address, Family, Protocol

log = logging.getLogger(__name__)

_COLLECT_S: Final = 0.02
_PROTOCOLS: Final = {protocol.number: protocol for protocol in Protocol}

Rows = Mapping[Table, Mapping[Any, Any]]


def denied(entry: Entry, judge: Judge, own: frozenset[Address]) -> bool:
    """own: the node's addresses."""
    source = entry.original.source
    if source in own:
        return False
    protocol = _PROTOCOLS.get(entry.original.protocol)
    flow = PolicyFlow(source, entry.reply.source, protocol, entry.reply.source_port)
    return not all(judge.decide(flow, direction).allowed for direction in Direction)


class Cutter:
    """On a thread of its own. rows: a copy of the tables as they are when it begins to look.

    cut: how many flows were cut; left: how many could not be, in the last look, for want of room.
    """

    def __init__(self, rows: Callable[[], Rows], netns_fd: int | None = None) -> None:
        self.cut = self.left = 0
        self._rows, self._netns_fd = rows, netns_fd
        self._netlink = Netlink(NETLINK_NETFILTER, netns_fd)
        self._change = threading.Condition()
        self._asked = self._looked = 0
        self._closed = False
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """The tables have changed."""
        with self._change:
            self._asked += 1
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="cutter", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def wait(self, timeout_s: float = 10.0) -> bool:
        """Until all that was asked for has been looked at."""
        with self._change:
            asked = self._asked
            return self._change.wait_for(lambda: self._looked >= asked, timeout_s)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        self._netlink.close()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._asked > self._looked)
                if self._closed:
                    return
                self._change.wait_for(lambda: self._closed, _COLLECT_S)
                asked = self._asked
            try:
                self._sweep(Judge(self._rows()))
            except KernelError as error:
                log.warning("flows that policy denies were not cut: %s", error)
            with self._change:
                self._looked = asked
                self._change.notify_all()

    def _sweep(self, judge: Judge) -> None:
        with Rtnl(self._netns_fd) as rt:
            own = frozenset(entry.address.ip for entry in rt.addresses())
        left = 0
        for family in Family:
            for message in self._netlink.dump(codec.get(Filter(family))):
                entry = codec.unpack(message)
                if entry is None:
                    continue
                wrong = denied(entry, judge, own)
                if wrong != entry.is_cut:
                    left += not self._mark(entry, wrong)
        self.left = left
        if left:
            log.warning(
                "%d flows that policy denies began before there was room for labels: they go on", left
            )

    def _mark(self, entry: Entry, wrong: bool) -> bool:
        """False when the entry has no room for a label."""
        try:
            self._netlink.do(codec.label(entry, cut=wrong))
        except KernelNotFoundError:
            return True  # it has ended
        except KernelError as error:
            if error.errno == errno.ENOSPC:
                return False
            raise
        self.cut += wrong
        return True
