"""`ipMasq`: what attachments send out of their networks leaves with the node's address (nftables).

    set   masquerade4   10.22.0.5                       addresses of attachments
    set   own4          10.22.0.5 . 10.22.0.0/16        each with its network
    rule  saddr in masquerade4, (saddr . daddr) not in own4, daddr no multicast -> masquerade

Three rules serve every attachment; an attachment is an element of each set. The table is made when the
first attachment asks for it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from podlane.cni.plugins.base import Owner, Records
from podlane.cni.results import IpInterface
from podlane.errors import KernelNotFoundError
from podlane.kernel.nft import command, listing

TABLE: Final = "inet podlane-cni"
_KIND: Final = "masquerade"
_RULES: Final = (
    "ip saddr @masquerade4 ip saddr . ip daddr != @own4 ip daddr != 224.0.0.0/4 masquerade",
    "ip6 saddr @masquerade6 ip6 saddr . ip6 daddr != @own6 ip6 daddr != ff00::/8 masquerade",
)
_SKELETON: Final = f"""
add table {TABLE}
add set {TABLE} masquerade4 {{ type ipv4_addr; }}
add set {TABLE} masquerade6 {{ type ipv6_addr; }}
add set {TABLE} own4 {{ type ipv4_addr . ipv4_addr; flags interval; }}
add set {TABLE} own6 {{ type ipv6_addr . ipv6_addr; flags interval; }}
add chain {TABLE} postrouting {{ type nat hook postrouting priority srcnat; }}
flush chain {TABLE} postrouting
add rule {TABLE} postrouting {_RULES[0]}
add rule {TABLE} postrouting {_RULES[1]}
"""


class NftMasquerade:
    """plugins/base.py: Masquerade. netns_fd: the node's namespace; None for the process's own."""

    def __init__(self, records: Records, netns_fd: int | None = None) -> None:
        self._records, self._netns_fd = records, netns_fd
        self._thread = ThreadPoolExecutor(1, "cni-masquerade")
        self._made = False

    def close(self) -> None:
        self._thread.shutdown()

    async def add(self, owner: Owner, addresses: Sequence[IpInterface]) -> None:
        await self.remove(owner)
        self._records.put(_KIND, owner, {"addresses": [str(a) for a in addresses]})
        text = "".join(f"add {line}\n" for line in _elements(addresses))
        await self._load(text if self._made else _SKELETON + text)
        self._made = True

    async def remove(self, owner: Owner) -> None:
        if self._records.get(_KIND, owner) is None:
            return
        # Added first, so that what is gone already is no error.
        lines = _elements(self._held(owner))
        try:
            await self._load("".join(f"{verb} {line}\n" for verb in ("add", "delete") for line in lines))
        except KernelNotFoundError:
            self._made = False  # the whole table is gone
        self._records.remove(_KIND, owner)

    async def has(self, owner: Owner, addresses: Sequence[IpInterface]) -> bool:
        if not set(self._held(owner)) >= set(addresses):
            return False
        loop = asyncio.get_running_loop()
        there = await loop.run_in_executor(self._thread, listing.table, TABLE, self._netns_fd)
        wanted: dict[str, frozenset[str]] = {}
        for name, element in (place for address in addresses for place in _places(address)):
            wanted[name] = wanted.get(name, frozenset()) | {element}
        return not there.missing(frozenset(_RULES), wanted)

    async def keep_only(self, network: str, valid: Collection[tuple[str, str]]) -> None:
        for owner, _ in self._records.all(_KIND, network):
            if owner.key not in valid:
                await self.remove(owner)

    def _held(self, owner: Owner) -> list[IpInterface]:
        note = self._records.get(_KIND, owner) or {}
        return [ipaddress.ip_interface(text) for text in note.get("addresses", ())]

    async def _load(self, text: str) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, command.load, text, self._netns_fd)


def _elements(addresses: Sequence[IpInterface]) -> list[str]:
    places = [place for address in addresses for place in _places(address)]
    return [f"element {TABLE} {name} {{ {element} }}" for name, element in places]


def _places(address: IpInterface) -> Iterator[tuple[str, str]]:
    """(set, element)"""
    yield f"masquerade{address.version}", str(address.ip)
    network = address.network if address.network.num_addresses > 1 else address.ip  # as nft prints it
    yield f"own{address.version}", f"{address.ip} . {network}"
