"""Limits on one link of the node, in both directions.

    towards the far end   tbf as root of the link itself
    from the far end      link: ingress -> u32 -> mirred redirect to an ifb of its own, whose root is a tbf

A link takes its queues along when it goes; its ifb must be deleted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from podlane.errors import KernelError, KernelExistsError, KernelNotFoundError, UnsupportedError
from podlane.kernel.netlink import NETLINK_ROUTE
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.rtnl import links
from podlane.kernel.rtnl.links import Link
from podlane.kernel.tc import codec
from podlane.kernel.tc.codec import INGRESS, ROOT, Bucket, Qdisc

_TOLERANCE: Final = 0.01  # the kernel keeps a burst as the time it takes, in steps of 64 ns


class Limits(NamedTuple):
    """outgoing: of what the node sends by the link; incoming: of what it receives. None: no limit."""

    outgoing: Bucket | None = None
    incoming: Bucket | None = None


class Shaper:
    """In namespace netns_fd; None for the caller's. Blocking; serves one thread at a time."""

    def __init__(self, netns_fd: int | None = None) -> None:
        self._netlink = Netlink(NETLINK_ROUTE, netns_fd)

    def close(self) -> None:
        self._netlink.close()

    def links(self) -> dict[str, Link]:
        return {link.name: link for link in map(links.unpack, self._netlink.dump(links.get_all()))}

    def apply(self, device: str, ifb: str, limits: Limits) -> None:
        """Makes what is missing and corrects what is different; what is right stays as it is.

        Raises UnsupportedError naming the part of the kernel that is missing, else KernelError.
        """
        link = self._link(device)
        there = self._qdiscs(link.index)
        if limits.outgoing is not None and not _same(limits.outgoing, there.get(ROOT)):
            with _needs("the queueing discipline tbf", "CONFIG_NET_SCH_TBF"):
                self._netlink.do(codec.set_bucket(link.index, limits.outgoing))
        elif limits.outgoing is None and ROOT in there and there[ROOT].kind == "tbf":
            self._netlink.do(codec.delete(link.index, ROOT))
        if limits.incoming is not None:
            self._limit_incoming(link, ifb, limits.incoming, INGRESS in there)
        elif INGRESS in there:
            self._netlink.do(codec.delete(link.index, INGRESS))

    def faults(self, device: str, ifb: str, limits: Limits) -> list[str]:
        """In what the kernel is not as `apply` makes it."""
        link = self._find(device)
        if link is None:
            return [f"there is no link {device}"]
        found = []
        if limits.outgoing is not None and not _same(limits.outgoing, self._qdiscs(link.index).get(ROOT)):
            found.append(f"{device} does not limit what the container receives")
        if limits.incoming is not None:
            block = self._find(ifb)
            if block is None or self._redirects(link) != [block.index]:
                found.append(f"what the container sends by {device} does not go through {ifb}")
            elif not _same(limits.incoming, self._qdiscs(block.index).get(ROOT)):
                found.append(f"{ifb} does not limit what the container sends")
        return found

    def _limit_incoming(self, link: Link, ifb: str, bucket: Bucket, has_ingress: bool) -> None:
        block = self._find(ifb)
        if block is None:
            with _needs("links of kind ifb", "CONFIG_IFB"):
                self._netlink.do(*links.create_ifb(ifb, mtu_bytes=link.mtu_bytes))
            block = self._link(ifb)
        if not block.up:
            self._netlink.do(links.change(block.index, up=True, what=ifb))
        if not _same(bucket, self._qdiscs(block.index).get(ROOT)):
            with _needs("the queueing discipline tbf", "CONFIG_NET_SCH_TBF"):
                self._netlink.do(codec.set_bucket(block.index, bucket))
        if has_ingress and self._redirects(link) == [block.index]:
            return
        if has_ingress:
            self._netlink.do(codec.delete(link.index, INGRESS))
        with _needs("the queueing discipline ingress", "CONFIG_NET_SCH_INGRESS"):
            self._netlink.do(codec.add_ingress(link.index))
        with _needs("the filter u32 or its action mirred", "CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED"):
            self._netlink.do(codec.redirect(link.index, block.index))

    def _find(self, name: str) -> Link | None:
        try:
            return self._link(name)
        except KernelNotFoundError:
            return None

    def _link(self, name: str) -> Link:
        return links.unpack(self._netlink.ask(links.get(name))[0])

    def _qdiscs(self, link: int) -> dict[int, Qdisc]:
        """By parent."""
        every = map(codec.unpack, self._netlink.dump(codec.get_all()))
        return {each.parent: each for each in every if each.link == link}

    def _redirects(self, link: Link) -> list[int]:
        found = map(codec.unpack_redirect, self._netlink.dump(codec.get_filters(link.index)))
        return [index for index in found if index is not None]


def _same(wanted: Bucket, there: Qdisc | None) -> bool:
    if there is None or there.bucket is None:
        return False
    held = there.bucket
    near = abs(held.burst - wanted.burst) <= max(wanted.burst * _TOLERANCE, 1)
    return near and (held.rate, held.limit) == (wanted.rate, wanted.limit)


@contextmanager
def _needs(what: str, options: str) -> Iterator[None]:
    """The kernel says in several ways that it has no such thing."""
    try:
        yield
    except KernelExistsError:
        raise
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
            raise UnsupportedError(f"this kernel lacks {what} ({options}): {error}") from None
        raise
