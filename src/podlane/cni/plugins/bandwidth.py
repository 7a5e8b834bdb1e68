"""`bandwidth`: limits what the attachment receives (ingress) and sends (egress), by token buckets.

ingressRate, ingressBurst, egressRate, egressBurst of the configuration win over those of
runtimeConfig.bandwidth, as with the reference plugin. A burst may be left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podlane.cni.fields import Fields
from podlane.cni.plugins.base import Call, Host, Owner, PluginType
from podlane.cni.protocol import INVALID_CONFIG, NOT_AS_MADE, Request
from podlane.cni.results import Result
from podlane.cni.shaping import Bandwidth, read_bandwidth
from podlane.errors import CniError


class BandwidthPlugin(PluginType):
    name = "bandwidth"

    async def start(self, host: Host, lost: Sequence[tuple[Owner, dict[str, Any]]]) -> None:
        await host.shaping.start()

    def faults(self, request: Request) -> list[str]:
        fields = Fields(request.config)
        bandwidth_of(request.config, fields)
        return fields.faults

    async def add(self, call: Call) -> Result:
        bandwidth = bandwidth_of(call.request.config)
        if bandwidth:
            await call.host.shaping.set(call.owner, _device(call.chained), bandwidth)
        return call.chained

    async def delete(self, call: Call) -> None:
        await call.host.shaping.remove(call.owner)

    async def check(self, call: Call) -> None:
        bandwidth = bandwidth_of(call.request.config)
        if bandwidth and (found := await call.host.shaping.faults(_device(call.chained), bandwidth)):
            raise CniError(NOT_AS_MADE, "; ".join(found))

    async def gc(self, call: Call) -> None:
        valid = set(call.request.valid_attachments or ())
        await call.host.shaping.keep_only(call.request.network, valid)


def bandwidth_of(config: dict[str, Any], fields: Fields | None = None) -> Bandwidth:
    """Faults are noted in fields."""
    fields = Fields(config) if fields is None else fields
    own = read_bandwidth(fields)
    asked = read_bandwidth(fields.fields("runtimeConfig").fields("bandwidth"))
    return own or asked


def _device(result: Result) -> str:
    """The node's end of the container's link: the last link of the node that the result names.

    A bridge plugin names its bridge first.
    """
    names = [each.name for each in result.interfaces if not each.sandbox]
    if not names:
        raise CniError(INVALID_CONFIG, "prevResult names no link of the node whose traffic could be limited")
    return names[-1]


TYPE = BandwidthPlugin()
