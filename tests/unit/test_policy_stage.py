"""What `explain` says of NetworkPolicy, and what `check` expects of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from podlane.model.config import DEFAULT
from podlane.model.objects import Namespace, NetworkPolicy, Object, ObjectMeta, Pod, ServicePort
from podlane.observe.check_plan import Step
from podlane.observe.check_policy import expectations
from podlane.observe.cluster import Cluster
from podlane.observe.explain import explain
from podlane.observe.explanation import Explanation, Outcome, Stage
from podlane.observe.targets import parse_destination, parse_source
from tests.unit.observed_cluster import CLIENT, OUTSIDE, WEB1, WEB2, objects, service, slices

HOME = Namespace(metadata=ObjectMeta(name="default", labels={"team": "red"}))


def policy(name: str, **spec: Any) -> NetworkPolicy:
    return msgspec.convert({"metadata": {"name": name, "namespace": "default"}, "spec": spec}, NetworkPolicy)


def labelled(pod: Pod, **labels: str) -> Pod:
    return replace(pod, metadata=replace(pod.metadata, labels=labels))


def cluster(*made: Object) -> Cluster:
    changed = {(type(o).__name__, o.name): o for o in made}
    kept = [o for o in objects() if (type(o).__name__, o.name) not in changed]
    return Cluster([*kept, HOME, *made], OUTSIDE)


def told(known: Cluster, source: str, destination: str) -> Explanation:
    ends = known.party(parse_source(source)), known.party(parse_destination(destination))
    return explain(known, *ends, DEFAULT)


def stage(found: Explanation, name: str) -> Stage:
    return next(each for each in found.stages if each.stage == name)


WEB = labelled(WEB1, app="web")
FRIENDS = policy(
    "friends",
    podSelector={"matchLabels": {"app": "web"}},
    ingress=[{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": "http"}]}],
)


def test_without_policies_nothing_is_said_of_them() -> None:
    found = told(cluster(), "pod/client", "pod/web-1:80")
    assert found.verdict is Outcome.DELIVERED
    assert found.denied == "no"
    assert not [each for each in found.stages if "policy" in each.stage]


def test_a_denial_names_the_policy_and_the_label_that_is_missing() -> None:
    found = told(cluster(WEB, FRIENDS), "pod/client", "pod/web-1:80")
    assert (found.verdict, found.denied) == (Outcome.DROPPED, "yes")
    assert "ingress of default/pod/web-1: isolated for ingress by default/friends" in found.why
    nearest = "label role=friend on default/pod/client: then rule 0 of default/friends allows it"
    assert nearest in found.why
    last = found.stages[-1]
    assert (last.stage, last.node) == ("ingress policy", "node-2")
    assert "peer pods role=friend in namespace default: no; port http/TCP: yes" in last.rows[0].text


def test_what_is_said_to_be_nearest_is_enough() -> None:
    found = told(cluster(WEB, FRIENDS, labelled(CLIENT, role="friend")), "pod/client", "pod/web-1:80")
    assert (found.verdict, found.denied) == (Outcome.DELIVERED, "no")
    assert "rule 0 of default/friends allows it" in stage(found, "ingress policy").detail


def test_a_near_miss_of_the_port_names_the_open_one() -> None:
    known = cluster(WEB, FRIENDS, labelled(CLIENT, role="friend"))
    found = told(known, "pod/client", "pod/web-1:8080")
    assert "rule 0 of default/friends opens port http/TCP to it, asked was 8080/TCP" in found.why


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        ({"namespaceSelector": {"matchLabels": {"team": "blue"}}}, "label team=blue on namespace default"),
        (
            {"podSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]}},
            "label x (any value) on",
        ),
        ({"ipBlock": {"cidr": "192.0.2.0/24"}}, "a rule for default/pod/client with port 80/TCP"),
    ],
)
def test_the_nearest_change_depends_on_the_peer(peer: dict[str, Any], words: str) -> None:
    found = told(cluster(WEB, policy("one", ingress=[{"from": [peer]}])), "pod/client", "pod/web-1:80")
    assert words in found.why


def test_egress_is_judged_after_translation_on_the_sources_node() -> None:
    front = service("front", 90, ports=[ServicePort(name="http", port=81, target_port=80)])
    by_service = policy("out", policyTypes=["Egress"], egress=[{"ports": [{"port": 81}]}])
    by_endpoint = policy("out", policyTypes=["Egress"], egress=[{"ports": [{"port": 80}]}])
    found = told(cluster(front, *slices("front", 80, WEB1), by_service), "pod/client", "svc/front:81")
    assert (found.verdict, found.stages[-1].stage) == (Outcome.DROPPED, "egress policy")
    found = told(cluster(front, *slices("front", 80, WEB1), by_endpoint), "pod/client", "svc/front:81")
    assert found.verdict is Outcome.DELIVERED


def test_a_node_reaches_its_own_pods_always_and_those_of_others_by_rules() -> None:
    known = cluster(policy("closed"))
    assert told(known, "node/node-2", "pod/web-1:80").verdict is Outcome.DELIVERED
    assert told(known, "node/node-1", "pod/web-1:80").verdict is Outcome.DROPPED
    nodes = policy("closed", ingress=[{"from": [{"ipBlock": {"cidr": "172.30.0.0/16"}}]}])
    assert told(cluster(nodes), "node/node-1", "pod/web-1:80").verdict is Outcome.DELIVERED


def test_some_endpoints_only() -> None:
    found = told(cluster(WEB, WEB2, FRIENDS), "pod/client", "svc/web:80")
    assert (found.verdict, found.denied) == (Outcome.DROPPED, "partly")
    assert found.why.startswith("endpoint 10.244.2.3:80: NetworkPolicy denies it")


def test_a_check_expects_what_policy_says() -> None:
    known = cluster(WEB, FRIENDS)
    steps = [
        step("default/pod/client", "10.244.2.3", 80),
        step("default/pod/client", "10.244.3.3", 80),
        step("default/pod/client", "10.96.0.80", 80),
        step("node/node-2", "10.244.2.3", 80),
        step("default/pod/web-1", "127.0.0.1", 80),
    ]
    found = expectations(steps, known, DEFAULT)
    assert [(bool(each.denied), each.either) for each in found] == [
        (True, False),
        (False, False),
        (True, True),
        (False, False),
        (False, False),
    ]


def step(place: str, where: str, port: int) -> Step:
    from podlane.model.addresses import address

    return Step("pod-service", place, place, where, address(where), port)
