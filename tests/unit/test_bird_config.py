"""BIRD's configuration: what is written for which rows, and that BIRD itself can read it."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from podlane.compile.tables import BgpPeer, BgpSpeaker, Learnt
from podlane.engines.bird.config import render, session_name
from podlane.engines.bird.driver import session_states, state_of
from podlane.engines.bird.process import require
from podlane.errors import ConfigError
from podlane.model import config as configs
from podlane.model.addresses import Family
from podlane.model.bgp import Action, BgpRule

FOUR, SIX = ip_address("172.30.1.11"), ip_address("fd00:172:30::1:b")
OWN = (ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64"))
SPEAKER = BgpSpeaker(
    router_id="172.30.1.11",
    as_number=64512,
    interface="eth0",
    sources=(FOUR, SIX),
    own=OWN,
    accepted=(ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/56")),
    bfd=True,
    restart_s=120,
)
NODE = BgpPeer(ip_address("172.30.1.12"), 64512, "a secret", on_link=True, node=True)
PEERS = {
    ("node-2", Family.IPV4): NODE,
    ("node-2", Family.IPV6): replace(NODE, address=ip_address("fd00:172:30::1:c")),
    ("far", Family.IPV4): BgpPeer(ip_address("172.30.2.1"), 64600, "", on_link=False, node=False, port=1790),
}
ROUTER = BgpPeer(ip_address("172.30.1.1"), 64511, "", on_link=True, node=False)
RULED = replace(
    ROUTER,
    bfd=True,
    import_rules=(
        BgpRule(action=Action.REJECT, community="64511:66"),
        BgpRule(action=Action.ACCEPT, prefix="10.0.0.0/8", min_length=16, max_length=24),
        BgpRule(action=Action.ACCEPT, prefix="fd00::/8"),
        BgpRule(action=Action.REJECT),
    ),
    export_rules=(BgpRule(action=Action.REJECT, prefix="10.96.0.0/12", community="64512:1:2"),),
    local_preference=200,
    prepend=2,
)
UNNUMBERED = BgpPeer(None, 64511, "", on_link=True, node=False, interface="eth1", local_preference=50)
LEARNT = [Learnt(ip_network("10.244.2.0/24"), ip_address("172.30.1.12"))]


def rendered(**changes: object) -> str:
    return render(replace(SPEAKER, **changes), PEERS, OWN, LEARNT, "/run/bird.log")


def block(text: str, name: str) -> str:
    """The session `name` as it stands in the text."""
    head = f"protocol bgp {name} {{"
    start = text.index(head)
    return text[start : text.index("\n}", start)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bfd": False},
        {"restart_s": 0},
        {"sources": (FOUR,), "own": OWN[:1]},
        {"sources": (SIX,), "own": OWN[1:]},
        {"own": (), "accepted": ()},
        {"cluster_id": "172.30.1.11"},
        {"pod_communities": ("64512:100", "64512:1:2"), "service_communities": ("64512:200",)},
        {"own": (), "accepted": (), "service_communities": ("64512:200",)},
    ],
)
def test_bird_reads_what_is_written(changes: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "bird.conf"
    routers = {key: row for key, row in PEERS.items() if not row.node or changes.get("own") != ()}
    speaker = replace(SPEAKER, **changes)
    path.write_text(render(speaker, routers, OWN, LEARNT if speaker.own else (), "/run/bird.log"))
    done = subprocess.run([require(), "-p", "-c", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_session_a_peer_and_family_with_its_password() -> None:
    text = rendered()
    session = block(text, session_name("node-2", Family.IPV4))
    assert "local 172.30.1.11 as 64512;" in session
    assert "neighbor 172.30.1.12 port 179 as 64512;" in session
    assert 'password "a secret";' in session
    assert "import filter of_nodes4;" in session
    assert "local fd00:172:30::1:b as 64512;" in block(text, session_name("node-2", Family.IPV6))


def test_a_router_behind_others_is_reached_over_several_hops_and_may_tell_anything_but_our_pods() -> None:
    session = block(rendered(), session_name("far", Family.IPV4))
    assert "multihop;" in session
    assert "gateway recursive;" in session
    assert "port 1790 as 64600;" in session
    assert "import filter of_routers4;" in session
    assert "bfd" not in session
    watched = {("far", Family.IPV4): replace(PEERS["far", Family.IPV4], bfd=True)}
    text = render(replace(SPEAKER, bfd=False), watched, OWN, LEARNT, "/run/bird.log")
    assert "bfd on;" in block(text, session_name("far", Family.IPV4))
    assert "protocol bfd" in text
    assert "password" not in session


def test_beside_another_backend_nothing_is_learnt() -> None:
    routers = {key: row for key, row in PEERS.items() if not row.node}
    text = render(replace(SPEAKER, own=(), accepted=()), routers, OWN, (), "/run/bird.log")
    assert "filter of_routers4 { reject; }" in text
    assert "of_nodes" not in text
    assert "export filter to_routers4;" in block(text, session_name("far", Family.IPV4))


def written(peer: BgpPeer, **changes: object) -> tuple[str, str]:
    """(the whole file, the session's block), the only peer being `peer`; BIRD has read it."""
    family = Family.IPV4 if peer.address is not None else Family.IPV6
    text = render(replace(SPEAKER, **changes), {("one", family): peer}, OWN, (), "/run/bird.log")
    done = subprocess.run(
        [require(), "-p", "-c", "/dev/stdin"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return text, block(text, session_name("one", family))


def test_a_routers_rules_are_asked_in_their_order_after_what_always_holds() -> None:
    _, session = written(RULED)
    taken = session[session.index("import filter") : session.index("export filter")]
    parts = [
        "if net ~ [ 10.244.1.0/24+ ] then reject;",
        "bgp_local_pref = 200;",
        "if (64511,66) ~ bgp_community then reject;",
        "if net ~ [ 10.0.0.0/8{16,24} ] then accept;",
        "if true then reject;",
    ]
    places = [*(taken.index(part) for part in parts), taken.rindex(" accept;")]
    assert places == sorted(places)
    assert "fd00::" not in taken
    told = session[session.index("export filter") :]
    assert told.count("bgp_path.prepend(64512);") == 2
    assert "if net ~ [ 10.96.0.0/12{12,32} ] && (64512,1,2) ~ bgp_large_community then reject;" in told
    assert "bfd on;" in session


def test_routers_are_told_communities_of_pods_and_of_services_apart() -> None:
    text, _ = written(ROUTER, pod_communities=("64512:100", "64512:1:2"), service_communities=("64512:200",))
    told = text[text.index("function told4") : text.index("filter to_routers4")]
    pods, _, services = told.partition("else")
    assert "bgp_community.add((64512,100)); bgp_large_community.add((64512,1,2));" in pods
    assert "bgp_community.add((64512,200));" in services


def test_a_reflector_tells_nodes_what_it_learnt_of_pods_and_routers_nothing_of_it() -> None:
    text, session = written(replace(NODE, client=True), cluster_id="172.30.1.11")
    assert "rr client; rr cluster id 172.30.1.11;" in session
    assert "|| source = RTS_BGP && net ~ [ 10.244.0.0/16+ ] then accept" in text
    assert "RTS_BGP && net" not in written(NODE)[0]


def test_without_an_address_one_session_carries_both_families_and_the_node_tells_that_it_is_there() -> None:
    text, session = written(UNNUMBERED)
    assert (
        'protocol radv { interface "eth1" { min ra interval 3; max ra interval 4; default lifetime 0; }; }'
        in text
    )
    assert "neighbor range fe80::/10 as 64511;" in session
    assert 'interface "eth1"; dynamic name' in session
    assert "extended next hop on;" in session[session.index("ipv4 {") : session.index("ipv6 {")]
    assert "extended" not in session[session.index("ipv6 {") :]
    assert "bgp_local_pref = 50;" in session


def test_of_dynamic_sessions_the_best_is_told() -> None:
    key = ("eth1", Family.IPV6)
    name = session_name(*key)
    assert state_of({name: "Passive"}, key) == "Passive"
    assert (
        state_of({name: "Passive", f"{name}_1": "Connect", f"{name}_2": "Established"}, key) == "Established"
    )
    assert state_of({}, key) == "not configured"


def test_a_family_this_node_does_not_speak_has_no_session() -> None:
    assert session_name("node-2", Family.IPV6) not in rendered(sources=(FOUR,))


def test_a_node_outside_of_the_configured_prefixes_is_accepted_by_name() -> None:
    odd = [*LEARNT, Learnt(ip_network("10.200.2.0/24"), ip_address("172.30.1.13"))]
    text = render(SPEAKER, PEERS, OWN, odd, "/run/bird.log")
    assert "[ 10.200.2.0/24+, 10.244.0.0/16+ ]" in text
    assert "10.244.2.0/24" not in text


def test_the_same_rows_make_the_same_text() -> None:
    again = render(SPEAKER, dict(reversed(PEERS.items())), reversed(OWN), LEARNT, "/run/bird.log")
    assert again == rendered()


@pytest.mark.parametrize("name", ['"; include "/etc/shadow', "two\nlines", "pod\u00e9"])
def test_a_name_that_would_end_a_string_is_written_without_what_would(name: str) -> None:
    text = render(SPEAKER, {(name, Family.IPV4): NODE}, OWN, LEARNT, "/run/bird.log")
    (line,) = (each for each in text.splitlines() if "description" in each)
    assert line.count('"') == 2
    assert line.isascii()
    assert "?" in line


@pytest.mark.parametrize(
    ("bgp", "why"),
    [
        ({"asNumber": 0}, "bgp.asNumber: 0 is not between 1 and 4294967295"),
        ({"password": 'a"b'}, "bgp.password: printable ASCII without quotation marks"),
        ({"password": "x" * 81}, "bgp.password: longer than 80 bytes"),
        ({"peers": [{"address": "nowhere", "asNumber": 1}]}, "bgp.peers[0].address:"),
        ({"peers": [{"address": "10.0.0.1", "asNumber": 1 << 32}]}, "bgp.peers[0].asNumber: 4294967296"),
        (
            {"peers": [{"address": "10.0.0.1", "asNumber": 1}] * 2},
            "bgp.peers[1].address: 10.0.0.1 is",
        ),
        ({"peers": [{"asNumber": 1}]}, "bgp.peers[0].address: give address, or interface"),
        (
            {"peers": [{"asNumber": 1, "address": "10.0.0.1", "interface": "eth0"}]},
            "bgp.peers[0].address: give",
        ),
        ({"peers": [{"asNumber": 1, "interface": 'a"b'}]}, "bgp.peers[0].interface:"),
        (
            {"peers": [{"asNumber": 1, "interface": "eth0", "password": "p"}]},
            "bgp.peers[0].password: the kernel",
        ),
        ({"peers": [{"asNumber": 1, "interface": "eth0"}] * 2}, "bgp.peers[1].interface: eth0 is another"),
        ({"communities": {"pods": ["64512"]}}, "bgp.communities.pods: '64512' is no community"),
        ({"communities": {"services": ["65536:1"]}}, "bgp.communities.services: '65536:1' is no community"),
        ({"clusterID": "10.0.0.1"}, "bgp.clusterID: only route reflectors have one"),
        ({"clusterID": "x", "routeReflectors": {"a": "b"}}, "bgp.clusterID: 'x': 32 bits"),
        ({"routeReflectors": {"a b": "c"}}, "bgp.routeReflectors: "),
        (
            {"peers": [{"asNumber": 1, "address": "::1", "importRules": [{"action": "drop"}]}]},
            "bgp.peers[0].importRules[0].action: 'drop' is none of accept, reject",
        ),
        (
            {
                "peers": [
                    {
                        "asNumber": 1,
                        "address": "::1",
                        "exportRules": [
                            {"action": "accept", "prefix": "10.0.0.0/8", "minLength": 30, "maxLength": 9}
                        ],
                    }
                ]
            },
            "bgp.peers[0].exportRules[0]: lengths 30 to 9 do not lie between /8 and /32",
        ),
        ({"peers": [{"asNumber": 1, "address": "::1", "prepend": 11}]}, "bgp.peers[0].prepend: 11 is not"),
        ({"gracefulRestartSeconds": -1}, "bgp.gracefulRestartSeconds: -1 is not between 0 and 4095"),
    ],
)
def test_bad_settings_are_refused_by_key(bgp: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        configs.parse({"backend": {"type": "bgp"}, "bgp": bgp})
    assert why in str(refusal.value)


def test_the_states_of_sessions_are_read() -> None:
    answer = """\
2002-Name       Proto      Table      State  Since         Info
1002-device1    Device     ---        up     19:36:48.226
 peer4_1779f59f4df2 BGP        ---        up     19:34:11.639  Established
 peer6_1779f59f4df2 BGP        ---        start  19:34:11.635  Active        Socket: Connection refused
 peer6_a84cfe8a8631 BGP        ---        down   19:34:11.725
0000"""
    assert session_states(answer) == {
        "peer4_1779f59f4df2": "Established",
        "peer6_1779f59f4df2": "Active Socket: Connection refused",
        "peer6_a84cfe8a8631": "down",
    }
