"""`vlan`, `vlanTrunk` and `preserveDefaultVlan` of the bridge type: which VLANs a port belongs to.

    vlan 7                 what the pod sends untagged is of VLAN 7, and only VLAN 7 comes to it
    vlanTrunk              further VLANs, with their tags: {"id": 20}, {"minID": 100, "maxID": 110}
    preserveDefaultVlan    the port stays in VLAN 1, too

With isGateway and a vlan the node's address is not the bridge's, but that of a link of its own which is
behind a port of the VLAN: cni0.7, as the reference plugin makes it.
"""

from __future__ import annotations

import contextlib
import errno

import msgspec

from podlane.cni.fields import Fields
from podlane.errors import KernelError, KernelExistsError, KernelNotFoundError, UnsupportedError
from podlane.kernel.rtnl import Rtnl, links, vlans
from podlane.kernel.rtnl.links import Link

_LAST = 4094


class Vlans(msgspec.Struct, frozen=True):
    """own: 0 for none. trunk: first and last of each range."""

    own: int = 0
    trunk: tuple[tuple[int, int], ...] = ()
    keep_default: bool = False

    def __bool__(self) -> bool:
        return bool(self.own or self.trunk)


def read(fields: Fields) -> Vlans:
    trunk: list[tuple[int, int]] = []
    for place, entry in enumerate(fields.objects("vlanTrunk")):
        low, high, one = (entry.integer(key, 0, _LAST) for key in ("minID", "maxID", "id"))
        if not (one or low or high):
            fields.fault(f"vlanTrunk[{place}]", "has neither id nor minID and maxID")
        if bool(low) != bool(high) or low > high:
            fields.fault(f"vlanTrunk[{place}]", f"has minID {low} and maxID {high}: both, the lower first")
        trunk += [(first, last) for first, last in ((one, one), (low, high)) if first]
    return Vlans(fields.integer("vlan", 0, _LAST), tuple(trunk), fields.boolean("preserveDefaultVlan"))


def ensure_filtering(node: Rtnl, bridge: Link) -> None:
    """Raises UnsupportedError where the kernel cannot; then the bridge is as it was."""
    if _filters(node, bridge):
        return
    try:
        node.do(vlans.set_filtering(bridge.index, what=bridge.name))
    except KernelError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    if not _filters(node, bridge):  # older kernels say nothing
        need = "vlan and vlanTrunk need CONFIG_BRIDGE_VLAN_FILTERING, which this kernel has not"
        raise UnsupportedError(f"{need}; use a bridge for each network instead")


def join(node: Rtnl, port: int, wanted: Vlans, what: str) -> None:
    requests = [vlans.add(port, first, last, what=what) for first, last in wanted.trunk]
    if wanted.own:
        requests.append(vlans.add(port, wanted.own, access=True, what=what))
    node.do(*requests)
    if wanted.own != vlans.DEFAULT and not wanted.keep_default:
        with contextlib.suppress(KernelNotFoundError):
            node.do(vlans.delete(port, vlans.DEFAULT, what=what))


def ensure_gateway(node: Rtnl, bridge: Link, wanted: Vlans) -> Link:
    """The link that has the node's addresses in the VLAN. Raises ValueError for too long a name."""
    name = links.check_name(f"{bridge.name}.{wanted.own}")
    port = f"v{bridge.index}.{wanted.own}"
    if node.find_link(name) is None:
        with contextlib.suppress(KernelExistsError):
            node.create_veth(port, name, master=bridge.index, up=True, link_local=False)
            join(node, node.link_index(port), msgspec.structs.replace(wanted, trunk=()), port)
    node.set_up(name)
    return node.link(name)


def _filters(node: Rtnl, bridge: Link) -> bool:
    return any(vlans.filters(message) for message in node.ask(links.get(bridge.name)))
