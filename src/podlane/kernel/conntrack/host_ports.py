"""UDP flows that a host port's coming or going makes wrong.

A UDP client that goes on sending from one port keeps its conntrack entry alive, and with it the way the
first packet took: past a host port that came since, or to a pod that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from podlane.kernel.conntrack.codec import Entry, Filter
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.nft.host_ports import HostPort, Target
from podlane.model.addresses import Address, Protocol


def forget(
    flows: Flows,
    came: Mapping[HostPort, Target],
    went: Mapping[HostPort, Target],
    local: Callable[[], Collection[Address]],
) -> int:
    """Deletes the flows to ports that came and that lead elsewhere, and those that lead to what went.

    local(): the node's own addresses; others' ports are no host ports. Returns how many flows there
    were. Raises KernelError.
    """
    stale: set[Entry] = set()
    for key, target in came.items():
        elsewhere = {entry for entry in _flows(flows, key) if entry.reply.source != target.address}
        here = local() if elsewhere else ()
        stale |= {entry for entry in elsewhere if entry.original.destination in here}
    for key, target in went.items():
        stale |= {e for e in _flows(flows, key) if (e.reply.source, e.reply.source_port) == target}
    return flows.delete(stale)


def _flows(flows: Flows, key: HostPort) -> Iterable[Entry]:
    if key.protocol is not Protocol.UDP:
        return ()  # a TCP or SCTP client that gets no answer begins anew
    return flows.list(Filter(key.family, key.protocol.number, key.address, key.port))
