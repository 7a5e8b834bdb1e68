"""What the counters of a table's rules say. Read only, and only when somebody asks: it dumps the rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from podlane.errors import KernelNotFoundError
from podlane.kernel.netlink import NETLINK_NETFILTER
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.nft import ruleset
from podlane.kernel.nft.codec import TableFamily


class Counted(NamedTuple):
    """One rule that has a counter. comment: without the digest at its end."""

    family: str
    chain: str
    comment: str
    packets: int
    octets: int


def read(table: str, families: Iterable[TableFamily], netns_fd: int | None = None) -> list[Counted]:
    """Of the tables of that name, in order; one that is not there has nothing in it. Raises KernelError."""
    found = []
    with Netlink(NETLINK_NETFILTER, netns_fd) as netlink:
        for family in families:
            try:
                messages = netlink.dump(ruleset.get_rules(family, table))
            except KernelNotFoundError:
                continue
            for message in messages:
                of, chain, rule = ruleset.unpack_rule(message)
                counts = ruleset.unpack_counter(message)
                if of == table and counts is not None:
                    comment = rule.comment.rpartition(" #")[0] or rule.comment
                    found.append(Counted(family.nft, chain, comment, *counts))
    return found
