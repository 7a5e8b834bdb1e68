"""Bandwidth limits of attachments: what was asked for, as token buckets, in notes and in the kernel.

Kubernetes asks by annotations of the pod (kubernetes.io/ingress-bandwidth, egress-bandwidth), which the
runtime hands on as the capability `bandwidth`: ingress is what the pod receives. It hands on the largest
burst there is, too, with which the first gigabytes of a limited pod would pass unlimited
(kubernetes/kubernetes#90838): such a burst, like none, is replaced by 50 ms at the rate, and no burst is
less than ten packets. A queue holds 50 ms at the rate, or ten packets.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from msgspec import Struct

from podlane.cni.fields import Fields
from podlane.cni.plugins.base import Owner, Records
from podlane.errors import ConfigError
from podlane.kernel.tc.codec import Bucket
from podlane.kernel.tc.shaper import Limits, Shaper
from podlane.model.quantities import quantity

ANNOTATIONS: Final = {
    "ingressRate": "kubernetes.io/ingress-bandwidth",
    "egressRate": "kubernetes.io/egress-bandwidth",
}
_LEAST, _MOST = 1000, 10**15  # bits a second, as Kubernetes has it
_NO_BURST: Final = (1 << 31) - 1  # what Kubernetes writes for "none"
_SHARE_OF_SECOND: Final = 20  # 50 ms
_PACKETS: Final = 10
_LARGEST: Final = (1 << 32) - 1
_KIND: Final = "bandwidth"
_IFB: Final = "plq"


class Bandwidth(Struct, frozen=True):
    """In bits a second, and bits. A rate of 0 is no limit, a burst of 0 ours to choose."""

    ingress_rate: int = 0
    ingress_burst: int = 0
    egress_rate: int = 0
    egress_burst: int = 0

    def __bool__(self) -> bool:
        return bool(self.ingress_rate or self.egress_rate)


def read_bandwidth(fields: Fields) -> Bandwidth:
    """ingressRate, ingressBurst, egressRate, egressBurst; what is wrong is noted in the fields' faults."""
    values = []
    for way in ("ingress", "egress"):
        rate = fields.integer(f"{way}Rate", 0, 1 << 63)
        burst = fields.integer(f"{way}Burst", 0, 1 << 63)
        if rate and not _LEAST <= rate <= _MOST:
            fields.fault(f"{way}Rate", f"is {rate}, expected {_LEAST} to {_MOST} bits a second")
        if burst and not rate:
            fields.fault(f"{way}Burst", f"is of no use without {way}Rate")
        values += [rate, burst]
    return Bandwidth(*values)


def from_annotations(annotations: Mapping[str, str]) -> dict[str, int]:
    """A pod's annotations as runtimeConfig.bandwidth; empty if there are none.

    Raises ConfigError naming the annotation that is no resource.Quantity of 1k to 1P.
    """
    found = {}
    for key, name in ANNOTATIONS.items():
        if name not in annotations:
            continue
        try:
            rate = quantity(annotations[name])
        except ConfigError as error:
            raise ConfigError(f"annotation {name}: {error}") from None
        if not _LEAST <= rate <= _MOST:
            raise ConfigError(f"annotation {name}: {annotations[name]} is not between 1k and 1P")
        found[key] = rate
    return found


def bucket(rate_bits: int, burst_bits: int, mtu_bytes: int) -> Bucket | None:
    """None without a rate."""
    if not rate_bits:
        return None
    rate, frame = max(1, rate_bits // 8), mtu_bytes + 14
    share = max(rate // _SHARE_OF_SECOND, _PACKETS * frame)
    burst = burst_bits // 8 if 0 < burst_bits < _NO_BURST else share
    burst = min(max(burst, _PACKETS * frame), _LARGEST)
    return Bucket(rate, burst, min(burst + share, _LARGEST))


def limits(bandwidth: Bandwidth, mtu_bytes: int) -> Limits:
    return Limits(
        bucket(bandwidth.ingress_rate, bandwidth.ingress_burst, mtu_bytes),
        bucket(bandwidth.egress_rate, bandwidth.egress_burst, mtu_bytes),
    )


def ifb_of(device: str) -> str:
    """The ifb of a link of the node."""
    return _IFB + hashlib.sha256(device.encode()).hexdigest()[:10]


class Shaping:
    """remove_links: deletes links of the node. netns_fd: its namespace; None for the process's own."""

    def __init__(
        self,
        records: Records,
        remove_links: Callable[[Sequence[str]], Awaitable[None]],
        netns_fd: int | None = None,
    ) -> None:
        self._records, self._remove_links = records, remove_links
        self._thread = ThreadPoolExecutor(1, "shaping")
        self._shaper = Shaper(netns_fd)

    async def start(self) -> None:
        """What an earlier life left is compared with the notes; ifbs of links that are gone go too."""
        notes = self._records.all(_KIND)
        there = await self._run(self._shaper.links)
        kept = set()
        for owner, note in notes:
            if note["device"] in there:
                kept.add(ifb_of(note["device"]))
                await self._apply(note["device"], Bandwidth(**note["bandwidth"]))
            else:
                self._records.remove(_KIND, owner)
        strays = [link.name for link in there.values() if link.kind == "ifb" and link.name.startswith(_IFB)]
        if gone := [name for name in strays if name not in kept]:
            await self._remove_links(gone)

    def close(self) -> None:
        self._thread.shutdown()
        self._shaper.close()

    async def set(self, owner: Owner, device: str, bandwidth: Bandwidth) -> None:
        """In place of what the owner had. device: the node's end of its link.

        Raises UnsupportedError for what this kernel lacks, else KernelError; then no limit is left.
        """
        if not bandwidth:
            await self.remove(owner)
            return
        note = {
            "device": device,
            "bandwidth": {name: getattr(bandwidth, name) for name in Bandwidth.__struct_fields__},
        }
        self._records.put(_KIND, owner, note)
        try:
            await self._apply(device, bandwidth)
            if not bandwidth.egress_rate:
                await self._remove_links([ifb_of(device)])
        except BaseException:
            await self.remove(owner)
            raise

    async def remove(self, owner: Owner) -> None:
        """No error if there is nothing, or the link is gone already."""
        note = self._records.get(_KIND, owner)
        if note is None:
            return
        device = note["device"]
        if device in await self._run(self._shaper.links):
            await self._apply(device, Bandwidth())
        await self._remove_links([ifb_of(device)])
        self._records.remove(_KIND, owner)

    async def faults(self, device: str, bandwidth: Bandwidth) -> list[str]:
        """In what the kernel is not as `set` made it."""

        def look() -> list[str]:
            link = self._shaper.links().get(device)
            wanted = limits(bandwidth, link.mtu_bytes if link else 0)
            return self._shaper.faults(device, ifb_of(device), wanted)

        return await self._run(look) if bandwidth else []

    async def keep_only(self, network: str, valid: Collection[tuple[str, str]]) -> None:
        """Removes what attachments (container id, ifname) of the network that are not valid have."""
        for owner, _ in self._records.all(_KIND, network):
            if owner.key not in valid:
                await self.remove(owner)

    async def _apply(self, device: str, bandwidth: Bandwidth) -> None:
        def work() -> None:
            mtu_bytes = self._shaper.links()[device].mtu_bytes
            self._shaper.apply(device, ifb_of(device), limits(bandwidth, mtu_bytes))

        await self._run(work)

    async def _run(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
