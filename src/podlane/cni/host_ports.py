"""Host ports of attachments: who has which, in notes and in nftables (kernel/nft/host_ports.py).

A host port has one owner: a second one that asks for it is refused, not served by whoever came last. The
note is written before the kernel is touched and removed after, so that `start` finds everything that may
be there, and brings the kernel to it.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from msgspec import Struct

from podlane.cni.fields import Fields
from podlane.cni.plugins.base import Owner, Records
from podlane.errors import CniError, KernelExistsError, KernelNotFoundError
from podlane.kernel.conntrack.flows import Flows
from podlane.kernel.conntrack.host_ports import forget
from podlane.kernel.nft.host_ports import HostPort, HostPortTable, Target
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Address, Family, Protocol, family_of

HOST_PORT_TAKEN: Final = 110
_KIND: Final = "host-ports"
_PROTOCOLS: Final = tuple(each.lower() for each in Protocol)


class PortMapping(Struct, frozen=True):
    """One entry of the capability `portMappings`. host_ip: None for every address of the node."""

    host_port: int
    container_port: int
    protocol: Protocol = Protocol.TCP
    host_ip: Address | None = None


def read_mappings(entries: Sequence[Fields]) -> list[PortMapping]:
    """Entries {hostPort, containerPort, protocol, hostIP} of runtimeConfig.portMappings.

    What is wrong is noted in the entries' faults. An entry without a hostPort is no mapping.
    """
    found = []
    for entry in entries:
        host_port = entry.integer("hostPort", 0, 65535)
        container_port = entry.integer("containerPort", 0, 65535)
        protocol = entry.text("protocol", "tcp").lower() or "tcp"
        where = entry.address("hostIP")
        if protocol not in _PROTOCOLS:
            entry.fault("protocol", f"is {protocol!r}, expected one of {', '.join(_PROTOCOLS)}")
        elif host_port and not container_port:
            entry.fault("containerPort", "is missing or 0, expected an integer of 1 to 65535")
        elif host_port:
            anywhere = where is None or where.is_unspecified
            found.append(
                PortMapping(
                    host_port, container_port, Protocol(protocol.upper()), None if anywhere else where
                )
            )
    return found


def targets(mappings: Sequence[PortMapping], addresses: Sequence[Address]) -> dict[HostPort, Target]:
    """Each mapping in each family that the attachment has an address of, to the first of them.

    Raises CniError (HOST_PORT_TAKEN) if two mappings want one port for different container ports.
    """
    first: dict[Family, Address] = {}
    for address in addresses:
        first.setdefault(family_of(address), address)
    found: dict[HostPort, Target] = {}
    for each in mappings:
        families = first if each.host_ip is None else {family_of(each.host_ip)} & first.keys()
        for family in families:
            key = HostPort(family, each.protocol, each.host_port, each.host_ip)
            target = Target(first[family], each.container_port)
            if found.setdefault(key, target) != target:
                raise CniError(
                    HOST_PORT_TAKEN, f"{key} is mapped twice, to {found[key].port} and {target.port}"
                )
    return found


class HostPorts:
    """netns_fd: the node's namespace; None for the process's own. Kernel work is done on one thread."""

    def __init__(self, records: Records, netns_fd: int | None = None) -> None:
        self._records, self._netns_fd = records, netns_fd
        self._thread = ThreadPoolExecutor(1, "host-ports")
        self._table = HostPortTable(netns_fd)
        self._flows = Flows(netns_fd)
        self._owners: dict[HostPort, Owner] = {}
        self._held: dict[Owner, dict[HostPort, Target]] = {}
        for owner, note in records.all(_KIND):
            self._take(owner, _read(note))

    async def start(self) -> None:
        """What an earlier life left is compared with the notes. Raises KernelError."""
        everything = self._everything()
        await self._run(lambda: self._table.resync(everything))

    def close(self) -> None:
        self._thread.shutdown()
        self._table.close()
        self._flows.close()

    async def add(self, owner: Owner, mappings: Sequence[PortMapping], addresses: Sequence[Address]) -> None:
        """Replaces what the owner had. Raises CniError (HOST_PORT_TAKEN), KernelError."""
        wanted, before = targets(mappings, addresses), self._held.get(owner, {})
        for key in wanted:
            other = self._owners.get(key, owner)
            if other != owner:
                what = f"{key} is taken by container {other.container_id}"
                raise CniError(HOST_PORT_TAKEN, what, "free it, or ask for another hostPort or hostIP")
        if wanted == before:
            return
        if not wanted:
            await self.remove(owner)
            return
        # Taken before anything is awaited: two that ask at once do not both get it.
        self._give_back(owner)
        self._take(owner, wanted)
        try:
            self._records.put(_KIND, owner, _note(wanted | before))
            came = {k: t for k, t in wanted.items() if before.get(k) != t}
            went = {k: t for k, t in before.items() if wanted.get(k) != t}
            everything = self._everything()
            await self._run(lambda: self._change(came, went, everything))
            if before:
                self._records.put(_KIND, owner, _note(wanted))
        except BaseException:
            self._give_back(owner)
            if before:
                self._take(owner, before)
                self._records.put(_KIND, owner, _note(before))
            else:
                self._records.remove(_KIND, owner)
            raise

    async def remove(self, owner: Owner) -> None:
        """No error if there is nothing. Raises KernelError."""
        held = self._held.get(owner)
        if held is None:
            return
        everything = {key: t for key, t in self._everything().items() if key not in held}
        await self._run(lambda: self._change({}, held, everything))
        self._give_back(owner)
        self._records.remove(_KIND, owner)

    async def faults(
        self, owner: Owner, mappings: Sequence[PortMapping], addresses: Sequence[Address]
    ) -> list[str]:
        """In what the kernel is not as `add` made it."""
        wanted = targets(mappings, addresses)
        strange = [key for key in wanted if self._held.get(owner, {}).get(key) != wanted[key]]
        missing = await self._run(lambda: self._table.missing(wanted))
        return [f"{key} does not lead to the container" for key in dict.fromkeys([*strange, *missing])]

    async def keep_only(self, network: str, valid: Collection[tuple[str, str]]) -> None:
        """Removes what attachments (container id, ifname) of the network that are not valid have."""
        for owner in [each for each in self._held if each.network == network]:
            if owner.key not in valid:
                await self.remove(owner)

    # --- on the thread ---

    def _change(
        self,
        came: Mapping[HostPort, Target],
        went: Mapping[HostPort, Target],
        everything: Mapping[HostPort, Target],
    ) -> None:
        """everything: what shall be there afterwards, for a kernel that somebody else has changed."""
        try:
            self._table.change(came, went)
        except (KernelNotFoundError, KernelExistsError):
            self._table.resync(everything)
        forget(self._flows, came, went, self._own_addresses)

    def _own_addresses(self) -> set[Address]:
        with Rtnl(self._netns_fd) as rt:
            return {each.address.ip for each in rt.addresses()}

    async def _run(self, function: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    # --- owners ---

    def _everything(self) -> dict[HostPort, Target]:
        return {key: target for held in self._held.values() for key, target in held.items()}

    def _take(self, owner: Owner, wanted: Mapping[HostPort, Target]) -> None:
        self._held[owner] = dict(wanted)
        self._owners.update(dict.fromkeys(wanted, owner))

    def _give_back(self, owner: Owner) -> None:
        for key in self._held.pop(owner, {}):
            self._owners.pop(key, None)


def _note(held: Mapping[HostPort, Target]) -> dict[str, Any]:
    return {
        "ports": [
            [key.protocol, key.port, str(key.address or ""), str(target.address), target.port]
            for key, target in held.items()
        ]
    }


def _read(note: Mapping[str, Any]) -> dict[HostPort, Target]:
    found = {}
    for protocol, port, where, address, container_port in note.get("ports", ()):
        target = Target(ipaddress.ip_address(address), container_port)
        key = HostPort(
            family_of(target.address),
            Protocol(protocol),
            port,
            ipaddress.ip_address(where) if where else None,
        )
        found[key] = target
    return found
