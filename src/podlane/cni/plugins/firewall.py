"""`firewall`: who may send to the attachment (ingressPolicy open, same-bridge, isolated), by nftables.

    open           everyone: there is nothing to do, since podlane itself closes nothing
    same-bridge    not attachments on other bridges that have this policy or isolated
    isolated       not those on the same bridge either

as with the reference plugin, so that what is neither of such a bridge nor sent to one is not touched. A
bridge is in the sets as long as an attachment of it is:

    set   bridges     cni0                     bridges with either policy
    set   together    cni0 . cni0              those with same-bridge: their own traffic passes
    rule  from bridges to bridges, not together, of no flow that was begun -> drop

firewalld and an admin chain of iptables are refused by name.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Final

from podlane.cni.fields import Fields
from podlane.cni.plugins.base import Call, Host, Owner, PluginType
from podlane.cni.protocol import INVALID_CONFIG, NOT_AS_MADE, Request
from podlane.cni.results import Result
from podlane.errors import CniError
from podlane.kernel.nft import command, listing

TABLE: Final = "inet podlane-firewall"
_KIND: Final = "firewall"
_POLICIES: Final = ("open", "same-bridge", "isolated")
_RULES: Final = (
    "ct state established,related accept",
    "iifname @bridges oifname @bridges iifname . oifname != @together drop",
)
_TABLE_TEXT: Final = f"""
add table {TABLE}
add set {TABLE} bridges {{ type ifname; }}
add set {TABLE} together {{ type ifname . ifname; }}
add chain {TABLE} forward {{ type filter hook forward priority 0; policy accept; }}
flush chain {TABLE} forward
add rule {TABLE} forward {_RULES[0]}
add rule {TABLE} forward {_RULES[1]}
flush set {TABLE} bridges
flush set {TABLE} together
"""


class Firewall(PluginType):
    name = "firewall"

    def __init__(self) -> None:
        self._turn = threading.Lock()

    async def start(self, host: Host, lost: Sequence[tuple[Owner, dict[str, Any]]]) -> None:
        if host.records.all(_KIND):
            await self._write(host)

    def faults(self, request: Request) -> list[str]:
        fields = Fields(request.config)
        fields.choice("ingressPolicy", _POLICIES, "open")
        backend = fields.text("backend")
        if backend not in ("", "iptables", "nftables"):
            fields.fault("backend", f"is {backend!r}, expected iptables or nftables: both mean nftables here")
        for key in ("iptablesAdminChainName", "firewalldZone"):
            if fields.text(key):
                fields.fault(key, "is not supported: the rules are podlane's own, in nftables")
        return fields.faults

    async def add(self, call: Call) -> Result:
        result = call.chained
        policy = _policy(call)
        if policy == "open":
            return result
        call.host.records.put(_KIND, call.owner, {"bridge": _bridge(result), "policy": policy})
        try:
            await self._write(call.host)
        except BaseException:
            call.host.records.remove(_KIND, call.owner)
            raise
        return result

    async def delete(self, call: Call) -> None:
        await self._remove(call.host, [call.owner])

    async def check(self, call: Call) -> None:
        note = call.host.records.get(_KIND, call.owner)
        policy, wanted = _policy(call), (note or {}).get("policy", "open")
        faults = [] if policy == wanted else [f"the policy is {wanted}, not {policy}"]
        if note is not None:
            held = [each for _, each in call.host.records.all(_KIND)]
            there = await call.host.run(lambda: listing.table(TABLE, call.host.netns_fd))
            faults += there.missing(frozenset(_RULES), _elements(held))
        if faults:
            raise CniError(NOT_AS_MADE, f"firewall: {'; '.join(faults)}")

    async def gc(self, call: Call) -> None:
        valid = set(call.request.valid_attachments or ())
        held = call.host.records.all(_KIND, call.request.network)
        await self._remove(call.host, [owner for owner, _ in held if owner.key not in valid])

    async def _remove(self, host: Host, owners: Sequence[Owner]) -> None:
        held = [owner for owner in owners if host.records.get(_KIND, owner) is not None]
        for owner in held:
            host.records.remove(_KIND, owner)
        if held:
            await self._write(host)

    async def _write(self, host: Host) -> None:
        """Everything that is noted, as one transaction."""

        def write() -> None:
            with self._turn:
                command.load(rules([note for _, note in host.records.all(_KIND)]), host.netns_fd)

        await host.run(write)


def rules(notes: Sequence[dict[str, Any]]) -> str:
    """The table and its elements."""
    lines = [_TABLE_TEXT]
    for name, members in _elements(notes).items():
        lines += [f"add element {TABLE} {name} {{ {each} }}\n" for each in sorted(members)]
    return "".join(lines)


def _elements(notes: Sequence[dict[str, Any]]) -> dict[str, frozenset[str]]:
    """By set. One isolated attachment isolates its bridge."""
    bridges = {note["bridge"] for note in notes}
    isolated = {note["bridge"] for note in notes if note["policy"] == "isolated"}
    return {
        "bridges": frozenset(f'"{each}"' for each in bridges),
        "together": frozenset(f'"{each}" . "{each}"' for each in bridges - isolated),
    }


def _policy(call: Call) -> str:
    return Fields(call.request.config).text("ingressPolicy") or "open"


def _bridge(result: Result) -> str:
    """The bridge plugin names its bridge first."""
    names = [each.name for each in result.interfaces if not each.sandbox]
    if len(names) < 2:
        what = "ingressPolicy is about bridges, and prevResult names none: put firewall after bridge"
        raise CniError(INVALID_CONFIG, what)
    if '"' in names[0]:
        raise CniError(INVALID_CONFIG, f"the bridge's name {names[0]!r} cannot be said in nftables")
    return names[0]


TYPE = Firewall()
