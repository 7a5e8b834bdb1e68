"""Worlds of few pods and policies for hypothesis, as API objects, biased to the corners of NetworkPolicy."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import strategies as st

from podlane.model.objects import KINDS, Object

Json = dict[str, Any]
World = dict[str, list[Json]]

NAMESPACES = ["x", "y", "z"]
NODES = ["n1", "n2"]
PORTS = [79, 80, 81, 82, 443]
PROTOCOLS = ["TCP", "UDP", "SCTP"]
NAMES = ["http", "dns", "other"]
OUTSIDE = {4: ["198.51.100.9", "203.0.113.7"], 6: ["2001:db8:100::9", "2001:db8:200::7"]}
LABELS = {"app": ["a", "b", "c"], "tier": ["1", "2"]}
TEAMS = {"team": ["red", "blue"]}


def labels(of: dict[str, list[str]]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in of.items()})


@st.composite
def expressions(draw: st.DrawFn, of: dict[str, list[str]]) -> Json:
    key = draw(st.sampled_from([*of, "absent"]))
    operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
    values = st.lists(st.sampled_from([*of.get(key, []), "nobody"]), min_size=1, max_size=3, unique=True)
    made = {"key": key, "operator": operator}
    return made | ({"values": draw(values)} if operator in ("In", "NotIn") else {})


def selectors(of: dict[str, list[str]]) -> st.SearchStrategy[Json]:
    return st.one_of(
        st.just({}),
        labels(of).map(lambda m: {"matchLabels": m}),
        st.fixed_dictionaries({"matchExpressions": st.lists(expressions(of), min_size=1, max_size=2)}),
    )


def address(node: int, number: int, family: int) -> str:
    return f"10.244.{node}.{number}" if family == 4 else f"fd00:10:244:{node}::{number:x}"


@st.composite
def blocks(draw: st.DrawFn) -> Json:
    """Around the pods' own addresses, the hosts' outside, and the ends of the number space."""
    cidr, holes = draw(
        st.sampled_from(
            [
                ("0.0.0.0/0", ["10.244.1.0/24", "10.244.0.0/16", "203.0.113.7/32"]),
                ("::/0", ["fd00:10:244:1::/64", "2001:db8::/32"]),
                ("10.244.0.0/16", ["10.244.1.0/30", "10.244.1.2/31", "10.244.1.3/32", "10.244.2.0/24"]),
                ("10.244.1.2/31", ["10.244.1.3/32"]),
                ("10.244.2.4/32", []),
                ("198.51.100.0/24", ["198.51.100.0/25", "198.51.100.9/32"]),
                ("fd00:10:244::/48", ["fd00:10:244:1::/64", "fd00:10:244:1::4/126"]),
                ("fd00:10:244:2::2/128", []),
                ("2001:db8:100::/48", ["2001:db8:100::9/128"]),
                ("255.255.255.0/24", []),
            ]
        )
    )
    least = draw(st.sampled_from([0, 1, 1]))
    excepted = (
        draw(st.lists(st.sampled_from(holes), unique=True, min_size=least, max_size=2)) if holes else []
    )
    return {"cidr": cidr} | ({"except": excepted} if excepted else {})


@st.composite
def peers(draw: st.DrawFn) -> Json:
    kind = draw(st.sampled_from(["pods", "namespaces", "both", "block"]))
    if kind == "block":
        return {"ipBlock": draw(blocks())}
    made: Json = {}
    if kind != "namespaces":
        made["podSelector"] = draw(selectors(LABELS))
    if kind != "pods":
        by_name = {"kubernetes.io/metadata.name": NAMESPACES}
        made["namespaceSelector"] = draw(st.one_of(selectors(TEAMS), selectors(by_name)))
    return made


@st.composite
def ports(draw: st.DrawFn) -> Json:
    made: Json = {}
    protocol = draw(st.sampled_from([None, *PROTOCOLS]))
    if protocol:
        made["protocol"] = protocol
    kind = draw(st.sampled_from(["all", "number", "number", "range", "name", "name", "name"]))
    if kind in ("number", "range"):
        made["port"] = draw(st.sampled_from(PORTS))
    if kind == "range":
        made["endPort"] = draw(st.sampled_from([p for p in [*PORTS, 65535] if p >= made["port"]]))
    if kind == "name":
        made["port"] = draw(st.sampled_from(NAMES))
    return made


@st.composite
def rules(draw: st.DrawFn, key: str) -> Json:
    """Mostly with peers and with ports, sometimes without, or with an empty list of either."""
    made: Json = {}
    for field, one in ((key, peers()), ("ports", ports())):
        kind = draw(st.sampled_from(["absent", "empty", "some", "some", "some", "some"]))
        if kind != "absent":
            made[field] = draw(st.lists(one, min_size=1, max_size=3)) if kind == "some" else []
    return made


@st.composite
def policies(draw: st.DrawFn, namespace: str, name: str) -> Json:
    spec: Json = {}
    selects = draw(st.sampled_from(["absent", "all", "all", "some"]))
    if selects != "absent":
        spec["podSelector"] = draw(selectors(LABELS)) if selects == "some" else {}
    for kind, key in (("ingress", "from"), ("egress", "to")):
        if draw(st.sampled_from([True, True, False])):
            spec[kind] = draw(st.lists(rules(key), min_size=draw(st.sampled_from([0, 1, 1])), max_size=3))
    types = draw(st.sampled_from([None, ["Ingress"], ["Egress"], ["Egress", "Ingress"]]))
    if types:
        spec["policyTypes"] = types
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


@st.composite
def containers(draw: st.DrawFn, name: str) -> Json:
    declared = [
        {
            "name": n,
            "containerPort": draw(st.sampled_from(PORTS)),
            "protocol": draw(st.sampled_from(PROTOCOLS)),
        }
        for n in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=2))
    ]
    return {"name": name, "ports": declared}


def place(index: int) -> tuple[int, int]:
    """(number of the node, last octet) of the pod with that index."""
    return 1 + index % 2, 2 + index // 2


@st.composite
def pods(draw: st.DrawFn, index: int, *, corners: bool = True) -> Json:
    """corners: pods that ended, or are on their node's own network, too."""
    node, number = place(index)
    spec: Json = {"nodeName": f"n{node}", "containers": [draw(containers("main"))]}
    phase = "Running"
    if draw(st.sampled_from([True, True, False])):
        sidecar = draw(containers("init"))
        if draw(st.booleans()):
            sidecar["restartPolicy"] = "Always"
        spec["initContainers"] = [sidecar]
    addresses = [address(node, number, family) for family in (4, 6)]
    if corners and draw(st.integers(0, 9)) == 0:
        spec["hostNetwork"] = True
        addresses = [f"172.30.1.{node}", f"fd00:172:30::{node}"]
    elif corners:
        phase = draw(st.sampled_from(["Running", "Running", "Running", "Running", "Succeeded", "Failed"]))
    return {
        "metadata": {
            "name": f"p{index}",
            "namespace": NAMESPACES[index % 3],
            "labels": draw(labels(LABELS)),
            "uid": f"uid-{index}",
        },
        "spec": spec,
        "status": {"phase": phase, "podIPs": [{"ip": each} for each in addresses]},
    }


@st.composite
def namespaces(draw: st.DrawFn, name: str) -> Json:
    return {"metadata": {"name": name, "labels": draw(labels(TEAMS)) | {"kubernetes.io/metadata.name": name}}}


@st.composite
def worlds(draw: st.DrawFn, count: int = 6, *, corners: bool = True) -> World:
    least = draw(st.sampled_from([0, 1, 2]))
    names = draw(
        st.lists(st.sampled_from(["first", "second", "third"]), unique=True, min_size=least, max_size=3)
    )
    return {
        "Namespace": [draw(namespaces(name)) for name in NAMESPACES],
        "Pod": [draw(pods(index, corners=corners)) for index in range(count)],
        "NetworkPolicy": [draw(policies(draw(st.sampled_from(NAMESPACES)), name)) for name in names],
    }


@st.composite
def updates(draw: st.DrawFn, count: int = 6, *, corners: bool = True) -> tuple[str, Json, bool]:
    """(kind, object, it is there): one object that comes, changes or goes."""
    kind = draw(st.sampled_from(["Pod", "Pod", "Namespace", "NetworkPolicy", "NetworkPolicy"]))
    there = draw(st.integers(0, 3)) > 0
    if kind == "Pod":
        return kind, draw(pods(draw(st.integers(0, count - 1)), corners=corners)), there
    if kind == "Namespace":
        return kind, draw(namespaces(draw(st.sampled_from(NAMESPACES)))), True
    name, namespace = draw(st.sampled_from(["first", "second", "third"])), draw(st.sampled_from(NAMESPACES))
    return kind, draw(policies(namespace, name)), there


def typed(kind: str, value: Json) -> Object:
    return msgspec.convert(value, KINDS[kind])


def put(world: World, kind: str, value: Json, there: bool) -> None:
    """The same update, to the world."""
    where = value["metadata"].get("namespace"), value["metadata"]["name"]
    world[kind] = [
        each for each in world[kind] if (each["metadata"].get("namespace"), each["metadata"]["name"]) != where
    ]
    if there:
        world[kind].append(value)
