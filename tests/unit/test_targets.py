"""What people write for a source or a destination, and what they are told when it makes no sense."""

from __future__ import annotations

import ipaddress

import pytest

from podlane.errors import ConfigError, UsageError
from podlane.model.addresses import Family, Protocol
from podlane.observe.cluster import family_for, port_of
from podlane.observe.targets import Target, TargetKind, parse_destination, parse_source
from tests.unit.observed_cluster import cluster

POD, SERVICE, NODE = TargetKind.POD, TargetKind.SERVICE, TargetKind.NODE
V6 = ipaddress.ip_address("fd00::1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pod/web-1", Target(POD, "web-1", "default")),
        ("kube-system/pod/dns", Target(POD, "dns", "kube-system")),
        ("po/x:8080", Target(POD, "x", "default", port=8080)),
        ("svc/web:80", Target(SERVICE, "web", "default", port=80)),
        ("service/web:http/tcp", Target(SERVICE, "web", "default", port="http", protocol=Protocol.TCP)),
        ("other/svc/dns:53/UDP", Target(SERVICE, "dns", "other", port=53, protocol=Protocol.UDP)),
        ("pod/tcp", Target(POD, "tcp", "default")),
        ("x/pod/udp", Target(POD, "udp", "x")),
        ("pod/tcp/udp", Target(POD, "tcp", "default", protocol=Protocol.UDP)),
        ("node/node-1", Target(NODE, "node-1")),
        ("node/node-1:30080/sctp", Target(NODE, "node-1", port=30080, protocol=Protocol.SCTP)),
        ("outside", Target(TargetKind.OUTSIDE)),
        (
            "10.96.0.1:53/udp",
            Target(TargetKind.ADDRESS, "", "", ipaddress.ip_address("10.96.0.1"), 53, Protocol.UDP),
        ),
        ("fd00::1", Target(TargetKind.ADDRESS, address=V6)),
        ("[fd00::1]", Target(TargetKind.ADDRESS, address=V6)),
        ("[fd00::1]:443/tcp", Target(TargetKind.ADDRESS, "", "", V6, 443, Protocol.TCP)),
    ],
)
def test_every_form_is_understood(text: str, expected: Target) -> None:
    assert parse_destination(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deployment/web", "pod/NAME"),
        ("pdo/web", "did you mean pod/web?"),
        ("web", "did you mean pod/web or svc/web?"),
        ("pod/", "no name"),
        ("pod/Web", "'Web'"),
        ("a/b/c/d", "no kind 'c'"),
        ("x/node/node-1", "too many"),
        ("svc/web:0", "port 0 is not between 1 and 65535"),
        ("svc/web:65536", "65536"),
        ("svc/web:http/", "'http/' is no port"),
        ("svc/web:-x", "'-x' is no port"),
        ("[fd00::1]80", "[ADDRESS]:PORT"),
        ("[fd00::1", "[ADDRESS]:PORT"),
        ("10.0.0.256", "neither a name nor an address"),
        ("", "neither"),
        ("[::1]:80", "::1"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("ff02::1", "ff02::1"),
    ],
)
def test_nonsense_is_told_with_what_would_work(text: str, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_destination(text)
    assert words in str(refused.value)
    assert refused.value.exit_status == 2


def test_a_source_is_no_service_and_has_no_port() -> None:
    with pytest.raises(UsageError, match="a service sends nothing"):
        parse_source("svc/web")
    with pytest.raises(UsageError, match=r"write default/pod/client here"):
        parse_source("pod/client:80")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pod/clinet", "did you mean 'client'?"),
        ("other/pod/client", "there is default/pod/client"),
        ("svc/client", "there is default/pod/client"),
        ("node/node-9", "known: node-1, node-2, node-3"),
        ("svc/headless", "its endpoints are default/pod/web-1"),
    ],
)
def test_a_name_nobody_has_is_told_with_those_there_are(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        cluster().party(parse_destination(text))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("svc/web", (80, Protocol.TCP)),
        ("svc/web:http", (80, Protocol.TCP)),
        ("svc/web:81", (81, Protocol.TCP)),
        ("svc/web:81/udp", (81, Protocol.UDP)),
        ("pod/web-1", (80, Protocol.TCP)),
        ("pod/client", (0, Protocol.TCP)),
        ("node/node-1:22", (22, Protocol.TCP)),
    ],
)
def test_the_port_that_is_meant(text: str, expected: tuple[int, Protocol]) -> None:
    target = parse_destination(text)
    assert port_of(cluster().party(target), target) == expected


def test_a_port_name_nobody_has_is_told_with_those_there_are() -> None:
    target = parse_destination("svc/web:https")
    with pytest.raises(ConfigError, match="its ports: http=80/TCP"):
        port_of(cluster().party(target), target)


def test_an_address_is_the_pod_or_node_that_has_it() -> None:
    known = cluster()
    pod = known.party(parse_source("10.244.1.2"))
    assert (pod.pod and pod.pod.name, pod.node) == ("client", "node-1")
    assert known.party(parse_source("172.30.1.13")).node == "node-3"
    assert known.party(parse_source("192.0.2.1")).node == ""


def test_the_family_is_the_first_that_both_have() -> None:
    known = cluster()
    client, six = known.party(parse_source("pod/client")), known.party(parse_destination("fd00:10:96::80"))
    assert family_for(client, known.party(parse_destination("svc/web"))) is Family.IPV4
    assert family_for(client, known.party(parse_destination("svc/web")), Family.IPV6) is Family.IPV6
    assert family_for(client, six) is Family.IPV6
    with pytest.raises(ConfigError, match="no common family"):
        family_for(known.party(parse_source("10.244.1.2")), six)
