"""The ruleset that serves services: text for nft, loaded once. What changes afterwards is elements only.

No service has a rule of its own. A flow's first packet (nat chains see no other) goes through these
chains, here for IPv4; each name is one that `nft list table ip podlane` shows:

    prerouting, output
      services         the map `frontends` turns address, protocol and port into a mark of class, count
                       and list id (model/marks.py), kept as the flow's conntrack mark; for this node's
                       own addresses so does the map `node-ports`. No match: a ClusterIP is refused, any
                       other address of the service prefixes is dropped, and the rest is none of ours
      internal, external, external-local, dropped, refused
                       one chain a class: decides on masquerade, and on the short circuit of pods and
                       the node past externalTrafficPolicy Local
      guarded, guarded-local
                       first drop what comes from none of the list's `source-ranges`
      choose           by the map `counts` on to the chain of the list's count,
                     say count-3 (counts.py): draws 0, 1 or 2, and translates to what `endpoints`
                     has for (list id, number). A list chosen from by hash has a code for its count:
                     count-608 hashes the client's address into 4093 slots (lists.py)
    postrouting        masquerades: marked flows, a pod that reached itself, pods that leave the cluster

Session affinity goes through pick-3 instead of count-3: `picks` has a slot of the list for the number
drawn, `affinity` remembers it for (list id, hash of the client's address) and forgets it some time after
the last new flow, and `slots` has the slot's endpoint. Two clients with one hash share an endpoint, which
does no harm; the hash lets both families run the same rules (nft 1.0.6 miscompiles a dynamic map from a
concatenation with an IPv6 address). An endpoint that went has no slot: the client is forgotten and
drawn for anew. The scratch register between rules is the conntrack mark: it becomes class STICKY with the
slot as its count, and the packet mark's other bits stay untouched.

A packet that meets a list in the moment it shrinks may draw a number that is gone; it comes back to
`choose` and takes number 0, which every list has before and after.

Data maps cost the kernel nothing to change; rules, chains and verdict maps make it check the whole
table. So a count's chain is made when a list first has that many endpoints, and stays.

nft 1.0.6: a listing prints `dnat ip to` without `addr . port`, so never load a listing; `numgen` in a key
wants a map declared with typeof; `jhash` in a typeof crashes listings, so affinity is declared with
numgen, which is of the same type.
"""

from __future__ import annotations

import hashlib
from typing import Final

from podlane.compile import hashing
from podlane.compile.tables import SetName
from podlane.kernel.nft import lists
from podlane.model import marks
from podlane.model.addresses import Family
from podlane.model.config import NetworkConfig
from podlane.model.marks import Class

TABLE: Final = "podlane"

# Maps by name; sets have the names of SetName.
FRONTENDS: Final = "frontends"
NODE_PORTS: Final = "node-ports"
ENDPOINTS: Final = "endpoints"
SHORT_CIRCUITS: Final = "short-circuits"
PICKS: Final = "picks"
SLOTS: Final = "slots"
AFFINITY: Final = "affinity"
COUNTS: Final = "counts"
SOURCE_RANGES: Final = "source-ranges"
STICK: Final = "stick"
STICKY: Final = "sticky-"  # and the timeout in seconds: ids of the lists that have it

INTERVALS: Final = frozenset({SetName.SERVICE_CIDRS, SetName.POD_CIDRS, SetName.CLUSTER_CIDRS})

COUNT_KEY: Final = marks.COUNT.mask | marks.CLASS.put(marks.AFFINITY)
"""The bits of the mark that are a key of `counts`."""

_LIST: Final = f"ct mark & {marks.LIST.mask:#x}"
_CLASS: Final = f"ct mark & {marks.CLASS.mask:#x}"
_COUNT: Final = f"ct mark & {marks.COUNT.mask:#x}"
_PORTS: Final = "meta l4proto { tcp, udp, sctp }"
_CLIENTS: Final = 262144  # the most that affinity remembers; further clients are just not sticky


def skeleton(family: Family, config: NetworkConfig, *, serve: bool = True) -> str:
    """The whole table of one family, without elements.

    serve: flows to services are translated; if not, another proxy's are left to it, and only what leaves
    the cluster is masqueraded.
    """
    body, named = _body(family, config, serve), version(family, config, serve=serve)
    return f"table {family.nft} {TABLE} {{\n{body}\n\tchain {named} {{\n\t}}\n}}\n"


def version(family: Family, config: NetworkConfig, *, serve: bool = True) -> str:
    """The name of an empty chain that says which skeleton is loaded: another text, another name."""
    return "version-" + hashlib.sha256(_body(family, config, serve).encode()).hexdigest()[:12]


def replace(family: Family) -> str:
    """Goes before `skeleton` in the same transaction."""
    return f"add table {family.nft} {TABLE}\ndelete table {family.nft} {TABLE}\n"


def remove(family: Family) -> str:
    return f"delete table {family.nft} {TABLE}\n"


def count_chain(family: Family, code: int, *, affinity: bool) -> str:
    """What counts.py makes of netlink messages, as text: only for a transaction that also makes the maps."""
    drawn = f"{_LIST} . {_index(family, code)} map"
    if not affinity:
        name, rules = f"count-{code}", [f"{_PORTS} dnat {family.nft} addr . port to {drawn} @{ENDPOINTS}"]
    else:
        name, rules = f"pick-{code}", 2 * [f"ct mark set {drawn} @{PICKS} jump {STICK}"]
    where = f"{family.nft} {TABLE}"
    lines = [f"add chain {where} {name}", *(f"add rule {where} {name} {rule}" for rule in rules)]
    key = count_key(code, affinity=affinity)
    return "\n".join([*lines, f"add element {where} {COUNTS} {{ {key:#x} : jump {name} }}\n"])


def _index(family: Family, code: int) -> str:
    """What a count's chain takes an endpoint by."""
    number = lists.modulus(code)
    if not lists.is_hash(code):
        return f"numgen random mod {number}"
    client = f"{family.nft} saddr" + (" . th sport" if lists.hashes_port(code) else "")
    return f"jhash {client} mod {number} seed {hashing.SEED:#x}"


def count_key(code: int, *, affinity: bool) -> int:
    """The key of `counts` for a count: the mark's bits COUNT_KEY."""
    return marks.COUNT.put(code) | (marks.CLASS.put(marks.AFFINITY) if affinity else 0)


def sticky(family: Family, timeout_s: int) -> str:
    """One session affinity timeout: a set of list ids and the rule that remembers clients that long."""
    name, where = f"{STICKY}{timeout_s}", f"{family.nft} {TABLE}"
    return (
        f"add set {where} {name} {{ type mark; }}\n"
        f"add rule {where} remember {_LIST} @{name} "
        f"update @{AFFINITY} {{ {_client(family)} timeout {timeout_s}s : ct mark }}\n"
    )


def _client(family: Family) -> str:
    return f"({_LIST}) . jhash {family.nft} saddr mod 0xffffffff seed 0x85"


def _body(family: Family, config: NetworkConfig, serve: bool) -> str:
    ip, masquerade = family.nft, config.services.masquerade_mark
    keep = 0xFFFFFFFF ^ masquerade
    of_services = f"""
		meta mark & {masquerade:#x} != 0 meta mark set meta mark & {keep:#010x} masquerade fully-random
		ct status dnat {ip} saddr . {ip} daddr @{SetName.LOCAL_ENDPOINTS} masquerade fully-random"""
    return f"""\
{_sets_and_classes(family, config)}{_guard(family, config) + _HOOKS if serve else ""}
	chain postrouting {{
		type nat hook postrouting priority 100; policy accept;{of_services if serve else ""}
		{ip} saddr @{SetName.POD_CIDRS} {ip} daddr != @{SetName.CLUSTER_CIDRS} \
{ip} daddr != @{SetName.NODE_IPS} masquerade fully-random
	}}"""


_HOOKS: Final = """
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		goto services
	}
	chain output {
		type nat hook output priority -100; policy accept;
		goto services
	}"""


def _sets_and_classes(family: Family, config: NetworkConfig) -> str:
    ip = family.nft
    where = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    masquerade = config.services.masquerade_mark
    marked = f"meta mark set meta mark | {masquerade:#x}"
    classes = ",\n\t\t\t".join(
        f"{marks.mark(klass):#010x} : goto {chain}" for klass, chain in _CLASSES.items()
    )
    sets = "\n".join(
        f"\tset {name} {{\n\t\ttype {where}\n\t\tflags interval\n\t}}"
        if name in INTERVALS
        else f"\tset {name} {{\n\t\ttype {where}\n\t}}"
        for name in SetName
        if name is not SetName.LOCAL_ENDPOINTS
    )
    client = _client(family)
    return f"""\
	map {FRONTENDS} {{
		type {where} . inet_proto . inet_service : mark
	}}
	map {NODE_PORTS} {{
		type inet_proto . inet_service : mark
	}}
	map {ENDPOINTS} {{
		typeof ct mark . numgen random mod 2 : {ip} daddr . th dport
	}}
	map {SHORT_CIRCUITS} {{
		type mark : mark
	}}
	map {PICKS} {{
		typeof ct mark . numgen random mod 2 : ct mark
	}}
	map {SLOTS} {{
		typeof ct mark : {ip} daddr . th dport
	}}
	map {AFFINITY} {{
		typeof ct mark . numgen random mod 2 : ct mark
		size {_CLIENTS}
		flags dynamic,timeout
	}}
{sets}
	set {SOURCE_RANGES} {{
		typeof ct mark . {ip} saddr
		flags interval
	}}
	set {SetName.LOCAL_ENDPOINTS} {{
		typeof {ip} saddr . {ip} daddr
	}}
	chain refused {{
		meta l4proto tcp reject with tcp reset
		reject
	}}
	chain dropped {{
		drop
	}}
	map {COUNTS} {{
		type mark : verdict
	}}
	chain remember {{
	}}
	chain {STICK} {{
		{_CLASS} != {marks.mark(Class.STICKY):#x} return
		jump remember
		ct mark set {client} map @{AFFINITY}
		{_PORTS} dnat {ip} addr . port to ct mark & {marks.LIST.mask | marks.COUNT.mask:#x} map @{SLOTS}
		delete @{AFFINITY} {{ {client} : ct mark }}
	}}
	chain choose {{
		ct mark & {COUNT_KEY:#x} vmap @{COUNTS}
		{_PORTS} dnat {ip} addr . port to {_LIST} . numgen random mod 1 map @{ENDPOINTS}
		ct mark set {_LIST} . numgen random mod 1 map @{PICKS} jump {STICK}
		goto refused
	}}
	chain short-circuit {{
		ct mark set {_LIST} map @{SHORT_CIRCUITS}
		goto choose
	}}
	chain internal {{
		{ip} saddr != @{SetName.POD_CIDRS} {marked}
		goto choose
	}}
	chain external {{
		{marked}
		goto choose
	}}
	chain external-local {{
		{ip} saddr @{SetName.POD_CIDRS} goto short-circuit
		fib saddr type local {marked} goto short-circuit
		{_COUNT} == 0 drop
		goto choose
	}}
	chain guarded {{
		({_LIST}) . {ip} saddr != @{SOURCE_RANGES} drop
		goto external
	}}
	chain guarded-local {{
		({_LIST}) . {ip} saddr != @{SOURCE_RANGES} drop
		goto external-local
	}}
	chain classes {{
		{_CLASS} vmap {{
			{classes}
		}}
		goto refused
	}}
	chain services {{
		ct mark set {ip} daddr . meta l4proto . th dport map @{FRONTENDS} goto classes
		{ip} daddr @{SetName.NODE_PORT_IPS} ct mark set meta l4proto . th dport map @{NODE_PORTS} goto classes
		{ip} daddr @{SetName.CLUSTER_IPS} goto refused
		{ip} daddr @{SetName.SERVICE_CIDRS} drop
	}}"""


def _guard(family: Family, config: NetworkConfig) -> str:
    """Node ports of 127.0.0.1 need net.ipv4.conf.all.route_localnet, which also lets neighbours
    talk to what listens on 127.0.0.1 (CVE-2020-8558). This is the kernel's own check again, for every packet
    that comes from outside."""
    if not config.services.localhost_node_ports or family is not Family.IPV4:
        return ""
    return """
	chain no-loopback-from-outside {
		type filter hook prerouting priority -300; policy accept;
		iif != "lo" ip saddr 127.0.0.0/8 drop
		iif != "lo" ip daddr 127.0.0.0/8 drop
	}"""


_CLASSES: Final = {
    Class.INTERNAL: "internal",
    Class.EXTERNAL: "external",
    Class.EXTERNAL_LOCAL: "external-local",
    Class.EXTERNAL_GUARDED: "guarded",
    Class.EXTERNAL_LOCAL_GUARDED: "guarded-local",
    Class.INTERNAL_AFFINITY: "internal",
    Class.EXTERNAL_AFFINITY: "external",
    Class.EXTERNAL_LOCAL_AFFINITY: "external-local",
    Class.EXTERNAL_GUARDED_AFFINITY: "guarded",
    Class.EXTERNAL_LOCAL_GUARDED_AFFINITY: "guarded-local",
    Class.DROP: "dropped",
    Class.REJECT: "refused",
}
