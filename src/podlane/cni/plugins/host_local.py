"""`host-local`: addresses from ranges of this node, leased in files (address_files.py).

It serves our own types in the agent, and other plugins as an executable. What it leases is noted with
the boot, so that leases of attachments that a reboot ended are given back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from podlane.cni import protocol, ranges
from podlane.cni.address_files import DATA_DIR, AddressFiles, Holder
from podlane.cni.fields import Fields
from podlane.cni.ipam import dns_of_file, read_routes, requested
from podlane.cni.plugins.base import Call, Host, Owner, PluginType, read_once
from podlane.cni.protocol import Request
from podlane.cni.ranges import RangeSet
from podlane.cni.results import Dns, Ip, Result, RouteEntry
from podlane.errors import CniError
from podlane.model.addresses import Address


class Settings(Struct, frozen=True):
    """sets: an address of each is leased. wanted: addresses asked for by name."""

    data_dir: Path
    sets: tuple[RangeSet, ...]
    routes: tuple[RouteEntry, ...] = ()
    wanted: tuple[Address, ...] = ()
    resolv_conf: str = ""


@read_once
def read(request: Request) -> tuple[Settings, list[str]]:
    """What the configuration says, and what is wrong with it."""
    ipam = Fields(request.config).fields("ipam")
    faults = ipam.faults
    lists = [*_runtime_ranges(request, faults), *ipam.lists("ranges")]
    if any(key in ipam for key in ("subnet", "rangeStart", "rangeEnd")):
        lists.insert(0, [ipam])
    sets = tuple(tuple(filter(None, map(ranges.read, entries))) for entries in lists)
    if not lists:
        ipam.fault("ranges", "has no range: give subnet, or ranges with a subnet each")
    faults += [f"ipam.ranges: {fault}" for fault in ranges.set_faults(sets)]
    if any(not entries for entries in lists):
        ipam.fault("ranges", "has an empty range set")
    versions = [entries[0].subnet.version for entries in sets if entries]
    if request.version in ("0.1.0", "0.2.0") and any(versions.count(v) > 1 for v in (4, 6)):
        faults.append(f"cniVersion {request.version} knows one address a family; use 0.3.0 or newer")
    wanted = requested(request, faults)
    settings = Settings(
        Path(ipam.text("dataDir") or DATA_DIR),
        tuple(filter(None, sets)),
        tuple(read_routes(ipam)),
        tuple(w.ip for w in wanted),
        ipam.text("resolvConf"),
    )
    unplaced = [str(w) for w in settings.wanted if not any(w in r for entries in sets for r in entries)]
    if unplaced and not faults:
        faults.append(f"requested addresses {', '.join(unplaced)} are in none of the ranges")
    return settings, faults


def _runtime_ranges(request: Request, faults: list[str]) -> list[list[Fields]]:
    given = {"ipRanges": request.runtime("ipRanges")}
    return Fields(given, "runtimeConfig.", faults).lists("ipRanges")


class HostLocal(PluginType):
    name = "host-local"

    def __init__(self) -> None:
        self._networks: dict[tuple[Path, str], AddressFiles] = {}
        self._seen: set[Path] = set()

    def faults(self, request: Request) -> list[str]:
        return [] if request.verb is protocol.Verb.GC else read(request)[1]

    async def add(self, call: Call) -> Result:
        settings, _ = read(call.request)
        note = {"dataDir": str(settings.data_dir)}
        call.host.records.put(self.name, call.owner, note)
        try:
            ips, dns = await call.host.run(lambda: self._lease(call, settings))
        except BaseException:
            call.host.records.remove(self.name, call.owner)
            raise
        return Result(ips=tuple(ips), routes=settings.routes, dns=dns or Dns())

    async def delete(self, call: Call) -> None:
        settings, _ = read(call.request)
        owner = call.owner
        await call.host.run(lambda: self._release_of(settings.data_dir, owner))
        call.host.records.remove(self.name, owner)

    async def check(self, call: Call) -> None:
        settings, _ = read(call.request)
        owner = call.owner
        held = await call.host.run(lambda: self._held(settings.data_dir, owner))
        if not held:
            what = f"host-local: {owner.container_id} has no address of network {owner.network}"
            raise CniError(protocol.NOT_AS_MADE, what)

    async def gc(self, call: Call) -> None:
        settings, _ = read(call.request)
        valid = set(call.request.valid_attachments or ())
        containers = {container_id for container_id, _ in valid}

        def stale(holder: Holder) -> bool:
            return tuple(holder) not in valid if holder[1] else holder[0] not in containers

        await call.host.run(lambda: self._release(settings.data_dir, call.owner.network, stale))
        for owner, _ in call.host.records.all(self.name, call.owner.network):
            if owner.key not in valid:
                call.host.records.remove(self.name, owner)

    async def status(self, call: Call) -> None:
        settings, _ = read(call.request)
        # Made as ADD makes it: a directory that cannot be is what keeps ADD from working.
        try:
            await call.host.run(self._files(settings.data_dir, call.request.network).probe)
        except CniError as error:
            raise CniError(protocol.NOT_AVAILABLE, error.message) from None

    async def start(self, host: Host, lost: Sequence[tuple[Owner, dict[str, Any]]]) -> None:
        """Gives back the addresses of attachments that a reboot ended."""
        for owner, note in lost:
            await host.run(partial(self._release_of, Path(note["dataDir"]), owner))

    def _files(self, data_dir: Path, network: str) -> AddressFiles:
        key = data_dir, network
        return self._networks.get(key) or self._networks.setdefault(key, AddressFiles(*key))

    def _lease(self, call: Call, settings: Settings) -> tuple[list[Ip], Dns | None]:
        """An address of each range set, and what the file of name servers says."""
        owner = call.owner
        files = self._files(settings.data_dir, owner.network)
        taken: list[Address] = []
        with files.locked():
            self._note_others(call.host, settings.data_dir, owner.network, files.holders())
            try:
                ips = [
                    _lease_one(files, owner, place, entries, settings.wanted, taken)
                    for place, entries in enumerate(settings.sets)
                ]
                return ips, dns_of_file(settings.resolv_conf)
            except BaseException:
                for address in taken:
                    files.give_back(address)
                raise

    def _note_others(self, host: Host, data_dir: Path, network: str, held: Mapping[Address, Holder]) -> None:
        """Leases that were there before us end with this boot too: once a directory, they are noted."""
        if data_dir / network in self._seen:
            return
        self._seen.add(data_dir / network)
        for container_id, ifname in held.values():
            owner = Owner(network, container_id, ifname)
            if host.records.get(self.name, owner) is None:
                host.records.put(self.name, owner, {"dataDir": str(data_dir)})

    def _release(self, data_dir: Path, network: str, stale: Callable[[Holder], bool]) -> None:
        files = self._files(data_dir, network)
        with files.locked(make=False) as there:
            held = files.holders() if there else {}
            for address in [address for address, holder in held.items() if stale(holder)]:
                files.give_back(address)

    def _release_of(self, data_dir: Path, owner: Owner) -> None:
        files = self._files(data_dir, owner.network)
        with files.locked(make=False) as there:
            if not there:
                return
            if not files.of(*owner.key):
                files.forget()
            for address in files.of(*owner.key):
                files.give_back(address)

    def _held(self, data_dir: Path, owner: Owner) -> list[Address]:
        files = self._files(data_dir, owner.network)
        with files.locked(make=False) as there:
            return files.of(*owner.key) if there else []


def _lease_one(
    files: AddressFiles,
    owner: Owner,
    place: int,
    entries: RangeSet,
    wanted: tuple[Address, ...],
    taken: list[Address],
) -> Ip:
    """An address of one range set: the one it has already, the one asked for, or the next in turn."""
    asked = next((w for w in wanted if any(w in entry for entry in entries)), None)
    for address in files.of(*owner.key):
        for entry in entries:
            if address in entry:
                if asked not in (None, address):
                    what = f"{owner.container_id} has {address} already, so it cannot get {asked}"
                    raise CniError(protocol.INVALID_CONFIG, what)
                return Ip(entry.interface(address), entry.gateway)
    if asked is not None:
        entry = next(entry for entry in entries if asked in entry)
        if asked == entry.gateway:
            raise CniError(protocol.INVALID_CONFIG, f"requested address {asked} is the gateway's")
        holder = files.holders().get(asked)
        if holder is not None or not files.take(asked, *owner.key, place):
            whose = "another" if holder is None else holder[0]
            raise CniError(protocol.TRY_AGAIN_LATER, f"requested address {asked} is in use by {whose}")
        taken.append(asked)
        return Ip(entry.interface(asked), entry.gateway)
    for interface in ranges.candidates(entries, files.last(place), files.holders()):
        if files.take(interface.ip, *owner.key, place):
            taken.append(interface.ip)
            gateway = next(entry.gateway for entry in entries if interface.ip in entry)
            return Ip(interface, gateway)
    raise CniError(
        protocol.TRY_AGAIN_LATER,
        f"no IP addresses available in range set: {ranges.shown(entries)}",
        f"all {sum(entry.size for entry in entries)} are leased in {files.path}",
    )


TYPE = HostLocal()
