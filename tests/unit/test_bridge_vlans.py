"""VLANs of a bridge's ports: what configurations say, and the messages that say it to the kernel."""

from __future__ import annotations

import struct

import pytest

from podlane.cni.fields import Fields
from podlane.cni.vlans import Vlans, read
from podlane.kernel.netlink import Message
from podlane.kernel.rtnl import vlans
from podlane.kernel.rtnl.links import RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK

PORT = struct.pack("=BxHiII", 7, 0, 5, 0, 0)  # struct ifinfomsg: AF_BRIDGE, index 5


def info(*entries: tuple[int, int]) -> bytes:
    """IFLA_AF_SPEC (26) with a struct bridge_vlan_info (flags, vid) each."""
    inner = b"".join(struct.pack("=HHHH", 8, 2, flags, vid) for flags, vid in entries)
    return struct.pack("=HH", 4 + len(inner), 26 | 0x8000) + inner


@pytest.mark.parametrize(
    ("request_", "kind", "entries"),
    [
        (vlans.add(5, 7, access=True), RTM_SETLINK, [(0x6, 7)]),  # PVID, UNTAGGED
        (vlans.add(5, 20), RTM_SETLINK, [(0, 20)]),
        (vlans.add(5, 20, 20), RTM_SETLINK, [(0, 20)]),
        (vlans.add(5, 100, 110), RTM_SETLINK, [(0x8, 100), (0x10, 110)]),  # RANGE_BEGIN, RANGE_END
        (vlans.delete(5, 1), RTM_DELLINK, [(0, 1)]),
    ],
)
def test_messages_are_those_of_the_kernels_headers(request_, kind, entries):
    assert (request_.type, request_.body) == (kind, PORT + info(*entries))


def test_filtering_there_and_back():
    request = vlans.set_filtering(5)
    assert request.type == RTM_NEWLINK
    assert vlans.filters(Message(RTM_NEWLINK, 0, 1, request.body))
    assert not vlans.filters(Message(RTM_NEWLINK, 0, 1, request.body[:16]))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({}, Vlans()),
        ({"vlan": 0}, Vlans()),
        ({"vlan": 7, "preserveDefaultVlan": True}, Vlans(7, keep_default=True)),
        ({"vlanTrunk": [{"id": 20}, {"minID": 100, "maxID": 110}]}, Vlans(0, ((20, 20), (100, 110)))),
        ({"vlanTrunk": [{"id": 20, "minID": 100, "maxID": 110}]}, Vlans(0, ((20, 20), (100, 110)))),
    ],
)
def test_what_configurations_say(config, wanted):
    fields = Fields(config)
    assert (read(fields), fields.faults) == (wanted, [])
    assert bool(wanted) is bool(config.get("vlan") or config.get("vlanTrunk"))


@pytest.mark.parametrize(
    "config",
    [{"vlan": 4095}, {"vlan": "7"}, {"vlanTrunk": [{}]}, {"vlanTrunk": [{"minID": 9, "maxID": 8}]}],
)
def test_what_is_no_vlan_is_named(config):
    fields = Fields(config)
    read(fields)
    assert len(fields.faults) == 1
