"""`portmap`: ports of the node lead to the attachment (capability portMappings), by nftables maps.

Configuration as of the reference plugin. What asks for iptables (conditionsV4, conditionsV6,
externalSetMarkChain) is refused; backend, snat and markMasqBit are read and change nothing: there is one
backend, and only what needs masquerade gets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podlane.cni.fields import Fields
from podlane.cni.host_ports import PortMapping, read_mappings
from podlane.cni.plugins.base import Call, Host, Owner, PluginType
from podlane.cni.protocol import NOT_AS_MADE, Request
from podlane.cni.results import Result
from podlane.errors import CniError


class Portmap(PluginType):
    name = "portmap"

    async def start(self, host: Host, lost: Sequence[tuple[Owner, dict[str, Any]]]) -> None:
        await host.host_ports.start()

    def faults(self, request: Request) -> list[str]:
        fields = Fields(request.config)
        fields.optional("snat")
        fields.choice("backend", ("iptables", "nftables"), "nftables")
        fields.integer("markMasqBit", 0, 31)
        for key in ("conditionsV4", "conditionsV6"):
            if fields.strings(key):
                fields.fault(key, "are matches of iptables, which is not used here: leave them out")
        if fields.text("externalSetMarkChain"):
            fields.fault(
                "externalSetMarkChain", "is a chain of iptables, which is not used here: leave it out"
            )
        if fields.boolean("masqAll"):
            fields.fault("masqAll", "is not supported: clients keep their address")
        mappings_of(request.config, fields)
        return fields.faults

    async def add(self, call: Call) -> Result:
        result = call.chained
        addresses = [ip.address.ip for ip in result.ips]
        await call.host.host_ports.add(call.owner, mappings_of(call.request.config), addresses)
        return result

    async def delete(self, call: Call) -> None:
        await call.host.host_ports.remove(call.owner)

    async def check(self, call: Call) -> None:
        addresses = [ip.address.ip for ip in call.chained.ips]
        mappings = mappings_of(call.request.config)
        faults = await call.host.host_ports.faults(call.owner, mappings, addresses)
        if faults:
            raise CniError(NOT_AS_MADE, "; ".join(faults))

    async def gc(self, call: Call) -> None:
        valid = set(call.request.valid_attachments or ())
        await call.host.host_ports.keep_only(call.request.network, valid)


def mappings_of(config: dict[str, Any], fields: Fields | None = None) -> list[PortMapping]:
    """runtimeConfig.portMappings; faults are noted in fields."""
    fields = Fields(config) if fields is None else fields
    return read_mappings(fields.fields("runtimeConfig").objects("portMappings"))


TYPE = Portmap()
