"""Attaching pods to this node's network: a lease, a link, and a generation of the desired tables.

    attach   lease -> link -> on_change(None, new)       back in this order if one of them fails
    detach   on_change(old, None) -> link -> lease       the address is free only when nothing leads to it

A crash at any point leaves a lease at most: with its link it is an attachment that goes on (or whose
DEL comes), without it `start` collects it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeAlias, TypeVar

from podlane.cni.leases import Lease, Leases
from podlane.cni.link import PodLinks, as_cni_error, pod_mac
from podlane.cni.protocol import NOT_AS_MADE, TRY_AGAIN_LATER, UNKNOWN_CONTAINER
from podlane.compile.pods import host_device
from podlane.errors import CniError, KernelError
from podlane.model.addresses import Prefix
from podlane.model.local import Attachment

Key: TypeAlias = tuple[str, str]
T = TypeVar("T")
OnChange: TypeAlias = Callable[[Attachment | None, Attachment | None], Awaitable[None]]


class Attacher:
    """pod_cidrs: this node's pools, one a family, primary first; empty while the node has none.

    mtu_bytes: of pods' links (0: the default). on_change(old, new): returns when the tables that follow
    from the change are in the kernel. netns_fd: the node's namespace; None for the caller's.
    """

    def __init__(
        self,
        leases: Leases,
        pod_cidrs: Callable[[], Sequence[Prefix]],
        on_change: OnChange,
        *,
        mtu_bytes: Callable[[], int] = lambda: 0,
        netns_fd: int | None = None,
    ) -> None:
        self._leases = leases
        self._pod_cidrs = pod_cidrs
        self._on_change = on_change
        self._mtu_bytes = mtu_bytes
        # Deleting a link waits some 16 ms for RCU: on a thread of its own it holds up no attachment.
        self._links, self._adder = PodLinks(netns_fd), ThreadPoolExecutor(1, "cni-add")
        self._leaving, self._remover = PodLinks(netns_fd), ThreadPoolExecutor(1, "cni-del")
        self._doomed: dict[str, asyncio.Future[None]] = {}
        self._removal: asyncio.Task[None] | None = None
        self._turns: dict[Key, tuple[asyncio.Lock, int]] = {}

    async def start(self) -> list[Attachment]:
        """The attachments that are there. Leases whose link is gone are collected."""
        present = await self._on_adder(self._links.present)
        alive: list[Attachment] = []
        for lease in self._leases.all():
            if lease.device in present:
                alive.append(lease.attachment)
            else:
                self._leases.release(*lease.key)
        return alive

    async def close(self) -> None:
        """Waits for what has begun."""
        if self._removal is not None:
            await self._removal
        self._adder.shutdown()
        self._remover.shutdown()
        self._links.close()
        self._leaving.close()

    @property
    def not_ready(self) -> str:
        """Why no pod can be attached now; "" when one can."""
        return "" if self._pod_cidrs() else "this node has no pod CIDR yet (Node.spec.podCIDRs)"

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
    ) -> Lease:
        """Attaching what is attached answers the same lease. Raises CniError; then nothing is left."""
        wanted = Lease(
            container_id,
            ifname,
            network,
            host_device(container_id, ifname),
            pod_mac(container_id, ifname),
            pod_namespace=pod_namespace,
            pod_name=pod_name,
        )
        async with self._turn(wanted.key):
            try:
                return await self._attach(wanted, pod_netns)
            except KernelError as error:
                raise as_cni_error(error, f"attach {ifname} of {container_id}") from None

    async def detach(self, container_id: str, ifname: str) -> None:
        """Detaching what is not attached is done already. Raises CniError."""
        async with self._turn((container_id, ifname)):
            try:
                lease = self._leases.get(container_id, ifname)
                if lease is not None:
                    await self._detach(lease)
                else:
                    await self._remove(host_device(container_id, ifname))
            except KernelError as error:
                raise as_cni_error(error, f"detach {ifname} of {container_id}") from None

    async def check(self, container_id: str, ifname: str, pod_netns: int) -> Lease:
        """Raises CniError naming everything that is not as `attach` made it."""
        async with self._turn((container_id, ifname)):
            lease = self._leases.get(container_id, ifname)
            if lease is None:
                what = f"container {container_id} has no attachment {ifname} here"
                raise CniError(UNKNOWN_CONTAINER, what)
            faults = await self._on_adder(lambda: self._links.faults(lease, pod_netns))
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
            await self._on_adder(lambda: self._links.create(lease, pod_netns, mtu_bytes))
            made = True
            await self._on_change(None, lease.attachment)
        except BaseException:
            try:
                if made:
                    await self._remove(lease.device)
                    await self._on_change(lease.attachment, None)
            finally:
                self._leases.release(*lease.key)
            raise
        return lease

    async def _detach(self, lease: Lease) -> None:
        await self._on_change(lease.attachment, None)
        await self._remove(lease.device)
        self._leases.release(*lease.key)

    async def _remove(self, device: str) -> None:
        """Deletes a link; those that wait meanwhile go together, which takes no longer than one."""
        gone = self._doomed.get(device)
        if gone is None:
            gone = self._doomed[device] = asyncio.get_running_loop().create_future()
        if self._removal is None:
            self._removal = asyncio.create_task(self._remove_doomed())
        await asyncio.shield(gone)

    async def _remove_doomed(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._doomed:
                batch, self._doomed = self._doomed, {}
                error: BaseException | None = None
                try:
                    await loop.run_in_executor(self._remover, self._leaving.remove, list(batch))
                except BaseException as failure:
                    error = failure
                for gone in batch.values():
                    if error is None:
                        gone.set_result(None)
                    else:
                        gone.set_exception(error)
        finally:
            self._removal = None

    async def _on_adder(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._adder, function)

    @asynccontextmanager
    async def _turn(self, key: Key) -> AsyncIterator[None]:
        """One request of an attachment at a time: a DEL may come while its ADD still runs."""
        lock, users = self._turns.get(key, (asyncio.Lock(), 0))
        self._turns[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._turns[key]
            if users > 1:
                self._turns[key] = lock, users - 1
            else:
                del self._turns[key]
