"""Who can be asked: told from objects, from what runs, and from what is listened on."""

from __future__ import annotations

import ipaddress

from msgspec.structs import replace

from podlane.model.addresses import Family, Protocol, address
from podlane.observe.cluster import Cluster
from podlane.observe.ground import Ground, Running, survey
from podlane.observe.listening import Listening, listened, parse
from tests.unit.observed_cluster import OUTSIDE, objects, pod, service, slices

RESPONDER, COMMAND = Running({"c": "responder"}), {"c": "command"}
LISTENER = Listening(Protocol.TCP, address("::"), 80)


def surveyed(**running: Running) -> Ground:
    return survey(Cluster(objects(), OUTSIDE), {f"uid-{n.replace('_', '-')}": r for n, r in running.items()})


def test_a_responder_is_asked_on_what_it_declares_and_on_what_services_send_to_it() -> None:
    (web,) = surveyed(web_1=RESPONDER).members
    assert (web.name, web.node) == ("default/pod/web-1", "node-2")
    assert {(p.number, p.family, p.json) for p in web.ports} == {(80, f, True) for f in Family}
    (client,) = surveyed(client=RESPONDER).members  # declares nothing; svc/selfish sends to its 80
    assert {p.number for p in client.ports} == {80}


def test_a_program_is_asked_only_where_it_listens() -> None:
    (silent,) = surveyed(web_1=Running(COMMAND)).members
    assert silent.ports == ()
    (open_,) = surveyed(web_1=Running(COMMAND, [LISTENER])).members
    assert {(p.number, p.json, p.loopback) for p in open_.ports} == {(80, False, True)}
    bound = Listening(Protocol.TCP, address("10.244.2.3"), 80)
    (narrow,) = surveyed(web_1=Running(COMMAND, [bound])).members
    assert [(p.family, p.loopback) for p in narrow.ports] == [(Family.IPV4, False)]
    loopback = Listening(Protocol.TCP, address("127.0.0.1"), 80)
    (hidden,) = surveyed(web_1=Running(COMMAND, [loopback])).members
    assert hidden.ports == ()


def test_only_pods_that_run_with_an_address_of_their_own_are_members() -> None:
    running = {f"uid-{n}": RESPONDER for n in ("hosted", "done", "web-1", "going")}
    going = pod("going", 2, 20, 80)
    going = replace(going, metadata=replace(going.metadata, deletion_timestamp="2026-01-01T00:00:00Z"))
    found = survey(Cluster([*objects(), going], OUTSIDE), running)
    assert [m.name for m in found.members] == ["default/pod/web-1"]


def test_services_are_asked_when_their_ready_endpoints_serve() -> None:
    found = surveyed(web_1=RESPONDER, web_2=RESPONDER)
    names = {(s.name, s.address.version) for s in found.services}
    assert ("default/svc/web", 4) in names
    assert ("default/svc/web", 6) in names
    assert not {n for n, _ in names} & {"default/svc/empty", "default/svc/headless", "default/svc/selfish"}
    web = next(s for s in found.services if s.name == "default/svc/web")
    assert {e.pod for e in web.endpoints} == {("default", "web-1"), ("default", "web-2")}
    assert all(e.json for e in web.endpoints)


def test_a_service_one_of_whose_pods_does_not_serve_is_left_out() -> None:
    found = surveyed(web_1=RESPONDER, web_2=Running(COMMAND))
    assert "default/svc/web" not in {s.name for s in found.services}
    found = surveyed(web_1=RESPONDER, web_2=Running(COMMAND, [LISTENER]))
    web = next(s for s in found.services if s.name == "default/svc/web")
    assert sorted(e.json for e in web.endpoints) == [False, True]


def test_an_endpoint_that_is_no_pod_is_taken_at_its_word() -> None:
    found = surveyed()
    hosted = [s for s in found.services if s.name == "default/svc/hosted"]
    assert {s.port for s in hosted} == {9100}
    assert all(e.pod is None and not e.json for s in hosted for e in s.endpoints)


def test_policies_and_node_ports_are_kept() -> None:
    made = [
        service("near", 95, node_port=30099, external_traffic_policy="Local"),
        *slices("near", 80, pod("web-1", 2, 3, 80)),
    ]
    found = survey(Cluster([*objects(), *made], OUTSIDE), {"uid-web-1": RESPONDER})
    near = next(s for s in found.services if s.name == "default/svc/near")
    assert (near.node_port, near.external_local, near.internal_local) == (30099, True, False)
    assert near.answering("node-1", external=True) == ()
    assert len(near.answering("node-2", external=True)) == len(near.answering("node-1", external=False)) == 1


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def test_the_kernels_tables_are_read() -> None:
    four = (
        HEAD
        + "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
        + "   1: 0202F40A:9C40 5000600A:0050 01 00000000:00000000 00:00000000 00000000     0        0 2 1\n"
    )
    assert list(parse("tcp", four)) == [Listening(Protocol.TCP, ipaddress.ip_address("127.0.0.1"), 8080)]
    six = HEAD + "   0: 000000FD0000000000000000E8030000:0050 00000000000000000000000000000000:0000 0A 0:0\n"
    assert list(parse("tcp6", six)) == [Listening(Protocol.TCP, address("fd00::3e8"), 80)]
    udp = HEAD + "   0: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1 2\n"
    assert list(parse("udp", udp)) == [Listening(Protocol.UDP, address("0.0.0.0"), 53)]
    assert list(parse("tcp", HEAD + "nonsense\n x: y:z a 0A\n")) == []


def test_an_ipv4_wildcard_takes_no_ipv6() -> None:
    everything = Listening(Protocol.TCP, address("0.0.0.0"), 80)
    assert listened([everything], Protocol.TCP, address("10.0.0.1"), 80)
    assert not listened([everything], Protocol.TCP, address("fd00::1"), 80)
    assert not listened([everything], Protocol.UDP, address("10.0.0.1"), 80)
    assert not listened([everything], Protocol.TCP, address("10.0.0.1"), 81)
    assert listened([LISTENER], Protocol.TCP, address("10.0.0.1"), 80)
