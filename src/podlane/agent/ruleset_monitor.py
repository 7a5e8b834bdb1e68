"""The kernel tells when someone else changes podlane's nft tables.

Every change of a ruleset is told with the netlink port of the socket that asked for it; what came
through a socket of this process, or of an `nft` that it started, is no news. The kernel itself keeps most of
that from us: a cluster's services at the start are more notices than a socket holds.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from podlane.errors import KernelError
from podlane.kernel import netlink, own_ports
from podlane.kernel.netlink import NETLINK_NETFILTER, Message, attributes
from podlane.kernel.netlink_socket import Netlink

log = logging.getLogger(__name__)

# linux/netfilter/nfnetlink.h, nf_tables.h
_NFNLGRP_NFTABLES: Final = 7
_SUBSYSTEM_NFTABLES: Final = 10
_NEWGEN: Final = 15
_HEADER_BYTES: Final = 4
_TABLE_ATTRIBUTE: Final = 1  # NFTA_TABLE_NAME, and the table of chains, rules, sets and elements alike

DEBOUNCE_S: Final = 0.02


def concerns(message: Message, table: str) -> bool:
    """Whether a notice tells of a change to the table (of any family) or to something in it."""
    if message.type >> 8 != _SUBSYSTEM_NFTABLES or message.type & 0xFF == _NEWGEN:
        return False
    name = attributes(message.body, _HEADER_BYTES).get(_TABLE_ATTRIBUTE, b"")
    return netlink.unpack_text(name) == table


class RulesetMonitor:
    """Listens on the running loop. damaged: by the name of a table what to call a moment after a foreign
    change to it; all are called when notices were lost. others: what to call when any table was changed by
    somebody else."""

    def __init__(
        self,
        damaged: Mapping[str, Callable[[], None]],
        netns_fd: int | None = None,
        *,
        others: Callable[[], None] | None = None,
    ) -> None:
        self._damaged, self._others = damaged, others
        self._hurt: set[str] = set()
        self._netlink = Netlink(NETLINK_NETFILTER, netns_fd, groups=(_NFNLGRP_NFTABLES,))
        self._netlink.ignore_own()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._netlink.fileno(), self._readable)

    def close(self) -> None:
        self._loop.remove_reader(self._netlink.fileno())
        self._netlink.close()
        if self._timer is not None:
            self._timer.cancel()

    def _readable(self) -> None:
        try:
            heard = self._netlink.receive()
        except KernelError as error:
            if error.errno != errno.ENOBUFS:
                raise
            log.warning("notices of the ruleset were lost; comparing everything")
            self._soon(self._damaged)
            return
        foreign = [message for message in heard if not own_ports.is_own(message.port)]
        if foreign and self._others is not None:
            self._others()
        self._soon(name for name in self._damaged if any(concerns(message, name) for message in foreign))

    def _soon(self, tables: Iterable[str]) -> None:
        self._hurt.update(tables)
        if self._hurt and self._timer is None:
            self._timer = self._loop.call_later(DEBOUNCE_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        hurt, self._hurt = self._hurt, set()
        log.info("someone changed the nft tables %s; comparing", ", ".join(sorted(hurt)))
        for name in hurt:
            self._damaged[name]()
