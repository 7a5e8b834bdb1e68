"""Attaching pods to this node's network: a lease, a link, and a generation of the desired tables.

    attach   lease -> link -> on_change(None, new)       back in this order if one of them fails
    detach   on_change(old, None) -> link -> lease       the address is free only when nothing leads to it

A crash at any point leaves a lease at most: with its link it is an attachment that goes on (or whose
DEL comes), without it it is `leaked`, and detached by whoever collects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeAlias, TypeVar

from podlane.cni.leases import Lease, Leases
from podlane.cni.link import PodLinks, as_cni_error, pod_mac
from podlane.cni.protocol import NOT_AS_MADE, TRY_AGAIN_LATER, UNKNOWN_CONTAINER
from podlane.cni.removal import LinkRemover
from podlane.cni.turns import Turns
from podlane.compile.pods import host_device
from podlane.errors import CniError, KernelError
from podlane.model.addresses import Address, Prefix
from podlane.model.local import Attachment

Key: TypeAlias = tuple[str, str]
T = TypeVar("T")
OnChange: TypeAlias = Callable[[Attachment | None, Attachment | None], Awaitable[None]]


class Ports(NamedTuple):
    """Links are ports of this bridge (link mode `bridge`)."""

    bridge: str
    hairpin: bool = True


class Attacher:
    """pod_cidrs: this node's pools, one a family, primary first; empty while the node has none.

    ports: None for links that are routed. mtu_bytes: of pods' links (0: the default).
    on_change(old, new): returns when the tables that follow from the change are in the kernel.
    released(lease): its addresses are free; blocking, on the thread that makes links.
    netns_fd: the node's namespace; None for the caller's.
    """

    def __init__(
        self,
        leases: Leases,
        pod_cidrs: Callable[[], Sequence[Prefix]],
        on_change: OnChange,
        *,
        mtu_bytes: Callable[[], int] = lambda: 0,
        ports: Ports | None = None,
        released: Callable[[Lease], None] = lambda _: None,
        netns_fd: int | None = None,
    ) -> None:
        self._leases, self._released = leases, released
        self._pod_cidrs = pod_cidrs
        self._on_change = on_change
        self._mtu_bytes = mtu_bytes
        self._ports = ports
        self._links, self._adder = PodLinks(netns_fd), ThreadPoolExecutor(1, "cni-add")
        self._remover = LinkRemover(netns_fd)
        self._turns: Turns[Key] = Turns()

    async def start(self) -> list[Attachment]:
        """The attachments that are there."""
        present = await self._on_adder(self._links.present)
        return [lease.attachment for lease in self._leases.all() if lease.device in present]

    def leaked(self, links: Collection[str]) -> list[Lease]:
        """Leases whose link is gone. links: names of the node's links now."""
        return [lease for lease in self._leases.all() if lease.device not in links]

    async def close(self) -> None:
        """Waits for what has begun."""
        await self._remover.close()
        self._adder.shutdown()
        self._links.close()

    @property
    def not_ready(self) -> str:
        """Why no pod can be attached now; "" when one can."""
        return "" if self._pod_cidrs() else "this node has no pod CIDR yet (Node.spec.podCIDRs)"

    @property
    def pod_cidrs(self) -> Sequence[Prefix]:
        """This node's pools now."""
        return self._pod_cidrs()

    @property
    def _hairpin(self) -> bool:
        return self._ports is not None and self._ports.hairpin

    @property
    def mtu_bytes(self) -> int:
        """Of the links made from now on."""
        return self._mtu_bytes()

    async def attach(
        self,
        container_id: str,
        ifname: str,
        pod_netns: int,
        *,
        network: str,
        pod_namespace: str = "",
        pod_name: str = "",
        addresses: Sequence[Address] = (),
        mac: str = "",
    ) -> Lease:
        """Attaching what is attached answers the same lease. Raises CniError; then nothing is left.

        addresses, mac: asked for by name.
        """
        wanted = Lease(
            container_id,
            ifname,
            network,
            host_device(container_id, ifname),
            mac or pod_mac(container_id, ifname),
            tuple(addresses),
            pod_namespace=pod_namespace,
            pod_name=pod_name,
            bridge=self._ports.bridge if self._ports else "",
        )
        async with self._turns.of(wanted.key):
            try:
                return await self._attach(wanted, pod_netns)
            except KernelError as error:
                raise as_cni_error(error, f"attach {ifname} of {container_id}") from None

    async def detach(self, container_id: str, ifname: str) -> None:
        """Detaching what is not attached is done already. Raises CniError."""
        async with self._turns.of((container_id, ifname)):
            try:
                lease = self._leases.get(container_id, ifname)
                if lease is not None:
                    await self._detach(lease)
                else:
                    await self._remover.remove(host_device(container_id, ifname))
            except KernelError as error:
                raise as_cni_error(error, f"detach {ifname} of {container_id}") from None

    async def check(self, container_id: str, ifname: str, pod_netns: int) -> Lease:
        """Raises CniError naming everything that is not as `attach` made it."""
        async with self._turns.of((container_id, ifname)):
            lease = self._leases.get(container_id, ifname)
            if lease is None:
                what = f"container {container_id} has no attachment {ifname} here"
                raise CniError(UNKNOWN_CONTAINER, what)
            faults = await self._on_adder(
                lambda: self._links.faults(lease, pod_netns, self.pod_cidrs, hairpin=self._hairpin)
            )
            if faults:
                raise CniError(NOT_AS_MADE, f"attachment {ifname} of {container_id}: {'; '.join(faults)}")
            return lease

    async def keep_only(self, network: str, valid: Collection[Key]) -> None:
        """Detaches every attachment of the network that is not valid.

        Goes on after a failure; all failures are raised as one CniError.
        """
        failures: list[CniError] = []
        for lease in self._leases.all():
            if lease.network == network and lease.key not in valid:
                try:
                    await self.detach(*lease.key)
                except CniError as error:
                    failures.append(error)
        if failures:
            raise CniError(failures[0].code, "; ".join(failure.message for failure in failures))

    def network_of(self, container_id: str, ifname: str) -> str:
        """The network that an attachment was made for, "" if there is none."""
        lease = self._leases.get(container_id, ifname)
        return lease.network if lease is not None else ""

    def attachments(self) -> list[Attachment]:
        return [lease.attachment for lease in self._leases.all()]

    # --- steps ---

    async def _attach(self, wanted: Lease, pod_netns: int) -> Lease:
        known = self._leases.get(*wanted.key)
        if known is not None:
            if await self._on_adder(lambda: self._links.holds(known, pod_netns)):
                return known
            await self._detach(known)
        if self.not_ready:
            raise CniError(TRY_AGAIN_LATER, self.not_ready)
        lease = self._leases.take(wanted, self._pod_cidrs())
        made = False
        try:
            mtu_bytes = self.mtu_bytes
            await self._on_adder(lambda: self._links.create(lease, pod_netns, mtu_bytes, self.pod_cidrs))
            made = True
            await self._on_change(None, lease.attachment)
        except BaseException:
            try:
                if made:
                    await self._remover.remove(lease.device)
                    await self._on_change(lease.attachment, None)
            finally:
                self._leases.release(*lease.key)
            raise
        return lease

    async def _detach(self, lease: Lease) -> None:
        await self._on_change(lease.attachment, None)
        await self._remover.remove(lease.device)
        self._leases.release(*lease.key)
        await self._on_adder(lambda: self._released(lease))

    async def _on_adder(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._adder, function)
