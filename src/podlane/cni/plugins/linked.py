"""What `bridge` and `ptp` have in common: a veth into the pod, an IPAM type, masquerading, and notes.

    add      note -> IPAM -> link -> masquerade -> note with the result; back if one of them fails
    delete   masquerade -> link -> IPAM -> note

A crash at any point leaves a note at most, with the configuration to undo it by: the agent's next start
finds that it has no link and runs its DEL.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Collection, Mapping
from functools import partial
from typing import Any

import msgspec

from podlane.cni import inside, protocol, results
from podlane.cni.fields import Fields
from podlane.cni.ipam import read_dns
from podlane.cni.plugins.base import Call, Host, Owner, PluginType, gather_failures
from podlane.cni.protocol import Request, Verb
from podlane.cni.results import Dns, Result
from podlane.errors import CniError, KernelError
from podlane.kernel.rtnl import Rtnl


def device_of(owner: Owner) -> str:
    """The node's end of an attachment's link."""
    return "veth" + hashlib.sha256("\0".join(owner).encode()).hexdigest()[:8]


def mac_of(owner: Owner, addresses: Result) -> str:
    """Follows from the address: who has an old holder's MAC in a neighbour entry reaches the new one."""
    first = str(addresses.ips[0].address.ip) if addresses.ips else "\0".join(owner)
    return (b"\x02" + hashlib.sha256(f"{owner.network}\0{first}".encode()).digest()[:5]).hex(":")


def wanted_mac(request: Request, faults: list[str]) -> str:
    """Of CNI_ARGS, of args.cni, or of the capability `mac`: the last one counts; "" for none."""
    found = ""
    for where, value in (
        ("CNI_ARGS MAC", request.args.get("MAC")),
        ("args.cni.mac", request.cni_args("mac")),
        ("runtimeConfig.mac", request.runtime("mac")),
    ):
        if not value:
            continue
        try:
            octets = bytes.fromhex(value.replace(":", "").replace("-", ""))
            if len(octets) != 6 or octets[0] & 1:
                raise ValueError
            found = octets.hex(":")
        except (ValueError, AttributeError):
            faults.append(f"{where} is {value!r}, expected a unicast MAC address as 02:00:00:00:00:01")
    return found


def runtime_dns(request: Request, own: Dns, faults: list[str]) -> Dns:
    """The capability `dns` over the configuration's own."""
    fields = Fields({"dns": request.runtime("dns")}, "runtimeConfig.", faults).fields("dns")
    given = Dns(
        tuple(fields.strings("servers")),
        "",
        tuple(fields.strings("searches")),
        tuple(fields.strings("options")),
    )
    return own if given == Dns() else given


class Common(msgspec.Struct, frozen=True):
    """What both types' configurations say. ipam: its type, "" for links without addresses."""

    ipam: str
    ip_masq: bool
    mtu_bytes: int
    mac: str
    dns: Dns


def read_common(request: Request) -> tuple[Common, Fields]:
    fields = Fields(request.config)
    faults = fields.faults
    ipam = fields.mapping("ipam")
    kind = ipam.get("type", "")
    if ipam and (not isinstance(kind, str) or not kind):
        faults.append("ipam.type is missing")
        kind = ""
    if fields.text("ipMasqBackend", "nftables") not in ("nftables", "iptables", ""):
        faults.append("ipMasqBackend: expected nftables or iptables")
    # Every key of the specification's conventions that a runtime may give is checked, used or not.
    Fields({"aliases": request.runtime("aliases")}, "runtimeConfig.", faults).strings("aliases")
    common = Common(
        kind,
        fields.boolean("ipMasq"),
        fields.integer("mtu", 0, 65535),
        wanted_mac(request, faults),
        runtime_dns(request, read_dns(fields.fields("dns")), faults),
    )
    if common.mtu_bytes and common.mtu_bytes < 68:
        fields.fault("mtu", f"is {common.mtu_bytes}: 68 is the smallest")
    return common, fields


class LinkedType(PluginType):
    """Types say how the link is made (`make`) and what else must hold (`node_faults`); both block."""

    def make(self, call: Call, leased: Result, device: str) -> Result:
        """The link, complete, and the result. Leaves no link of its own when it fails."""
        raise NotImplementedError

    def node_faults(self, call: Call, node: Rtnl, device: str) -> list[str]:
        return []

    def undo(self, call: Call, note: Mapping[str, Any]) -> None:
        """What `make` made beside the link; no error if it is gone."""

    def leaked(self, host: Host, links: Collection[str]) -> list[Call]:
        notes = host.records.all(self.name)
        return [_call_of(host, owner, note) for owner, note in notes if note["device"] not in links]

    async def add(self, call: Call) -> Result:
        common, _ = read_common(call.request)
        owner, host = call.owner, call.host
        inside.check_namespace(call.namespace, host.netns_fd)
        note = host.records.get(self.name, owner)
        if note is not None:
            if (known := await self._known(call, note)) is not None:
                return results.merge(call.previous, known)
            await self._remove(call, note)
        device = device_of(owner)
        note = {
            "device": device,
            "config": {k: v for k, v in call.request.config.items() if k != "prevResult"},
            "environment": dict(call.environment),
        }
        host.records.put(self.name, owner, note)
        leased: Result | None = None
        try:
            leased = await host.delegate(common.ipam, call, Verb.ADD) if common.ipam else Result()
            if common.ipam and not leased.ips:
                raise CniError(protocol.INVALID_CONFIG, f"IPAM {common.ipam} gave no address")
            result = await host.run(partial(self.make, call, leased, device))
            if common.dns != Dns():
                result = msgspec.structs.replace(result, dns=common.dns)
            if common.ip_masq and result.ips:
                await host.masquerade.add(owner, [ip.address for ip in result.ips])
            made = {"result": results.document(result, protocol.NEWEST)}
            host.records.put(self.name, owner, note | made)
        except BaseException:
            # An IPAM type that refused has nothing. What cannot be undone now stays noted: it is collected.
            with contextlib.suppress(CniError, KernelError):
                await self._remove(call, note, leased=leased is not None)
            raise
        return results.merge(call.previous, result)

    async def delete(self, call: Call) -> None:
        note = call.host.records.get(self.name, call.owner)
        if note is None and call.netns_fd is not None:
            await call.host.run(lambda: _remove_foreign(call))
        await self._remove(call, note or {})

    async def check(self, call: Call) -> None:
        common, _ = read_common(call.request)
        previous = call.chained
        inside.check_namespace(call.namespace, call.host.netns_fd)
        note = call.host.records.get(self.name, call.owner)
        device = note["device"] if note else _device_of(previous)
        faults = await call.host.run(lambda: self._faults(call, device, previous))
        addresses = [ip.address for ip in previous.ips]
        if note and common.ip_masq and not await call.host.masquerade.has(call.owner, addresses):
            faults.append("it is not masqueraded")
        if faults:
            what = f"attachment {call.request.ifname} of {call.request.container_id}: {'; '.join(faults)}"
            raise CniError(protocol.NOT_AS_MADE, what)
        if common.ipam:
            await call.host.delegate(common.ipam, call, Verb.CHECK)

    async def gc(self, call: Call) -> None:
        host, request = call.host, call.request
        valid = set(request.valid_attachments or ())
        stale = [x for x in host.records.all(self.name, request.network) if x[0].key not in valid]
        steps: list[Awaitable[None]] = [self._remove(_as_owner(call, owner), note) for owner, note in stale]
        common, _ = read_common(request)
        steps.append(host.masquerade.keep_only(request.network, valid))
        if common.ipam:
            steps.append(_without_result(host.delegate(common.ipam, call, Verb.GC)))
        await gather_failures(steps)

    async def status(self, call: Call) -> None:
        common, _ = read_common(call.request)
        if common.ipam:
            await call.host.delegate(common.ipam, call, Verb.STATUS)

    async def _known(self, call: Call, note: Mapping[str, Any]) -> Result | None:
        """The answer of an earlier ADD, if what it made is all there."""
        if "result" not in note:
            return None
        known = results.decode(note["result"])
        node_fd, namespace = call.host.netns_fd, call.namespace

        def holds() -> bool:
            with Rtnl(node_fd) as node, Rtnl(namespace) as pod:
                return inside.holds(node, pod, note["device"], call.request.ifname, known)

        return known if await call.host.run(holds) else None

    async def _remove(self, call: Call, note: Mapping[str, Any], *, leased: bool = True) -> None:
        """Everything of the attachment; goes on after a failure, so that the rest is gone."""
        common, _ = read_common(call.request)
        device = note.get("device") or device_of(call.owner)
        steps: list[Awaitable[None]] = [
            call.host.masquerade.remove(call.owner),
            call.host.run(lambda: self.undo(call, note)),
            call.host.remove_links([device]),
        ]
        if common.ipam and leased:
            steps.append(_without_result(call.host.delegate(common.ipam, call, Verb.DEL)))
        await gather_failures(steps)
        call.host.records.remove(self.name, call.owner)

    def _faults(self, call: Call, device: str, previous: Result) -> list[str]:
        if not device:
            return ["nobody here made it, and prevResult names no link of the node that could be its"]
        with Rtnl(call.host.netns_fd) as node, Rtnl(call.namespace) as pod:
            found = inside.faults(node, pod, device, call.request.ifname, previous)
            return found + self.node_faults(call, node, device)


def _call_of(host: Host, owner: Owner, note: Mapping[str, Any]) -> Call:
    """The DEL that undoes what a note is about."""
    request = Request(
        verb=Verb.DEL,
        version=protocol.version_of(json.dumps(note["config"]).encode()),
        container_id=owner.container_id,
        ifname=owner.ifname,
        network=owner.network,
        config=note["config"],
    )
    return Call(request, host, {**note["environment"], "CNI_COMMAND": "DEL"})


def _as_owner(call: Call, owner: Owner) -> Call:
    request = msgspec.structs.replace(
        call.request, verb=Verb.DEL, container_id=owner.container_id, ifname=owner.ifname
    )
    environment = {
        **call.environment,
        "CNI_COMMAND": "DEL",
        "CNI_CONTAINERID": owner.container_id,
        "CNI_IFNAME": owner.ifname,
    }
    return call._replace(request=request, environment=environment, netns_fd=None)


async def _without_result(delegated: Awaitable[Result]) -> None:
    await delegated


def _device_of(previous: Result) -> str:
    """The node's end as another plugin named it."""
    return next((i.name for i in previous.interfaces if not i.sandbox and i.name.startswith("veth")), "")


def _remove_foreign(call: Call) -> None:
    """The link of an attachment that another plugin made, before this agent took the node over."""
    try:
        inside.check_namespace(call.namespace, call.host.netns_fd)
    except CniError:
        return
    with Rtnl(call.namespace) as pod:
        link = pod.find_link(call.request.ifname)
        if link is not None and link.kind == "veth":
            pod.delete_link(link.name, missing_ok=True)
