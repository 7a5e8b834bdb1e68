"""BIRD's configuration: what is written for which rows, and that BIRD itself can read it."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from podlane.compile.tables import BgpPeer, BgpSpeaker, Learnt
from podlane.engines.bird.config import render, session_name
from podlane.engines.bird.driver import session_states
from podlane.engines.bird.process import require
from podlane.errors import ConfigError
from podlane.model import config as configs
from podlane.model.addresses import Family

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
def test_what_would_end_a_string_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        render(SPEAKER, {(name, Family.IPV4): NODE}, OWN, LEARNT, "/run/bird.log")


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
