"""`podlane matrix` and `podlane lint`, from objects alone."""

from __future__ import annotations

from typing import Any

import msgspec

from podlane.model.config import DEFAULT
from podlane.model.objects import Namespace, NetworkPolicy, Object, ObjectMeta
from podlane.observe.cluster import Cluster
from podlane.observe.lint import lint
from podlane.observe.matrix import (
    changed,
    difference,
    difference_lines,
    matrix,
    matrix_lines,
    planned,
)
from tests.unit.observed_cluster import OUTSIDE, node, pod
from tests.unit.test_policy_stage import labelled, policy

HOME = Namespace(metadata=ObjectMeta(name="default", labels={"team": "red"}))
WEB, CLIENT, OTHER = labelled(pod("web", 2, 3, 80), app="web"), pod("client", 1, 2), pod("other", 1, 3)
FRIENDS: dict[str, Any] = {
    "podSelector": {"matchLabels": {"app": "web"}},
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}],
}


def cluster(*made: Object) -> Cluster:
    return Cluster([node(1), node(2), HOME, WEB, CLIENT, OTHER, *made], OUTSIDE)


def lines(known: Cluster) -> list[str]:
    return [" ".join(line.split()) for line in matrix_lines(matrix(known, DEFAULT))]


def test_who_may_send_to_each_port() -> None:
    assert lines(cluster())[-1] == "default/web 80/TCP from everyone"
    assert lines(cluster(policy("friends", **FRIENDS)))[-1] == "default/web 80/TCP from nobody"
    friend = labelled(CLIENT, role="friend")
    known = Cluster([node(1), node(2), HOME, WEB, friend, OTHER, policy("friends", **FRIENDS)], OUTSIDE)
    assert lines(known)[-1] == "default/web 80/TCP from default/client"


def test_egress_counts_too() -> None:
    known = cluster(policy("quiet", podSelector={}, policyTypes=["Egress"]))
    assert lines(known)[-1] == "default/web 80/TCP from outside"


def test_a_namespace_alone() -> None:
    assert matrix(cluster(), DEFAULT, "elsewhere").pairs == []
    assert matrix(cluster(), DEFAULT, "default").pairs == matrix(cluster(), DEFAULT).pairs


def test_what_a_change_would_do() -> None:
    manifest = {
        "kind": "NetworkPolicy",
        "metadata": {"name": "friends"},
        "spec": {**FRIENDS, "ingress": [{"from": [{"podSelector": {}}]}]},
    }
    now = cluster(policy("friends", **FRIENDS))
    after = changed(now, planned([manifest, {"kind": "Service", "metadata": {"name": "no matter"}}]))
    told = list(difference_lines(difference(matrix(now, DEFAULT), matrix(after, DEFAULT))))
    assert told == [
        "opens 2",
        "  default/client -> default/web 80/TCP",
        "  default/other -> default/web 80/TCP",
        "closes nothing",
    ]


def said(*made: Object) -> list[str]:
    return [str(each) for each in lint(cluster(*made), DEFAULT).findings]


def test_nothing_is_said_of_what_is_right() -> None:
    fine = policy(
        "fine", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": [{"port": "http"}]}]
    )
    assert said(fine) == []


def test_what_selects_or_matches_nobody_is_named() -> None:
    nobody = policy("nobody", podSelector={"matchLabels": {"app": "wbe"}})
    assert said(nobody) == ["default/nobody spec.podSelector: it selects none of the pods of default"]
    assert said(policy("friends", **FRIENDS)) == [
        "default/friends spec.ingress[0]: nobody is among pods role=friend in namespace default"
    ]
    blue = policy("blue", ingress=[{"from": [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]}])
    assert "nobody is among all pods in namespaces team=blue" in said(blue)[0]
    unserved = policy("unserved", ingress=[{"ports": [{"port": "htp"}]}])
    assert said(unserved) == ["default/unserved spec.ingress[0]: no pod that it is about has a port htp/TCP"]


def test_a_policy_without_a_namespace_is_named() -> None:
    lost = msgspec.convert({"metadata": {"name": "lost", "namespace": "gone"}}, NetworkPolicy)
    assert said(lost) == ["gone/lost: there is no namespace gone"]


def test_service_addresses_in_a_block_are_named() -> None:
    block = {"ipBlock": {"cidr": "10.96.0.10/32"}}
    found = said(policy("vip", podSelector={"matchLabels": {"app": "web"}}, egress=[{"to": [block]}]))
    assert "10.96.0.10/32 is of services" in found[0]


def test_egress_without_names_is_named_once() -> None:
    some = [{"to": [{"podSelector": {}}], "ports": [{"port": 80}]}]
    found = said(policy("out", egress=some, policyTypes=["Egress"]))
    assert found == [
        "default/out spec.egress: default/client may send, but no rule lets it ask for names (UDP and TCP 53)"
    ]
    names = [*some, {"ports": [{"port": 53, "protocol": "UDP"}]}]
    assert said(policy("out", egress=names, policyTypes=["Egress"])) == []
    assert said(policy("closed", policyTypes=["Egress"])) == []
