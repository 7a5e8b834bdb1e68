"""CNI requests and answers: the rules of the specification and of libcni's skel, as tables."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from podlane.cni import protocol
from podlane.cni.protocol import Verb
from podlane.cni.results import Interface, Ip, Result, RouteEntry, decode, encode_result, merge
from podlane.errors import CniError

ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
}
CONFIG = {"cniVersion": "1.1.0", "name": "podlane", "type": "podlane"}


def parse(environment=(), config=(), without=()):
    merged = {k: v for k, v in {**ENVIRONMENT, **dict(environment)}.items() if k not in without}
    return protocol.parse(merged, json.dumps({**CONFIG, **dict(config)}).encode())


def refusal(**kwargs) -> CniError:
    with pytest.raises(CniError) as caught:
        parse(**kwargs)
    return caught.value


def test_a_request_is_read():
    request = parse()
    assert (request.verb, request.container_id, request.ifname) == (Verb.ADD, "c1", "eth0")
    assert (request.netns, request.network, request.version) == ("/run/netns/x", "podlane", "1.1.0")
    assert (request.args["K8S_POD_NAMESPACE"], request.args["K8S_POD_NAME"]) == ("default", "web-0")


POD_VERBS = {"ADD", "DEL", "CHECK"}


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize(
    ("variable", "needed_by"),
    [
        ("CNI_CONTAINERID", POD_VERBS),
        ("CNI_NETNS", {"ADD", "CHECK"}),
        ("CNI_IFNAME", POD_VERBS),
        ("CNI_PATH", POD_VERBS | {"GC", "STATUS"}),
    ],
)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_each_verb_needs_its_variables(verb, variable, needed_by, how):
    environment = {"CNI_COMMAND": verb} | ({variable: ""} if how == "empty" else {})
    kwargs = {
        "environment": environment,
        "config": {"prevResult": {}, "cni.dev/valid-attachments": []},
        "without": [variable] if how == "absent" else [],
    }
    if verb in needed_by:
        error = refusal(**kwargs)
        assert (error.code, error.message) == (4, f"required env variables [{variable}] missing")
    else:
        assert parse(**kwargs).verb == verb


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("CNI_CONTAINERID", "-leading", "CNI_CONTAINERID '-leading'"),
        ("CNI_CONTAINERID", "a/b", "CNI_CONTAINERID 'a/b'"),
        ("CNI_CONTAINERID", "a b", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "a\n", "CNI_CONTAINERID"),
        ("CNI_IFNAME", "sixteen-letters-", "more than 15"),
        ("CNI_IFNAME", ".", "no interface names"),
        ("CNI_IFNAME", "..", "no interface names"),
        ("CNI_IFNAME", "a/b", "contains"),
        ("CNI_IFNAME", "a:b", "contains"),
        ("CNI_IFNAME", "a b", "contains"),
        ("CNI_COMMAND", "PUT", "unknown CNI_COMMAND: PUT"),
        ("CNI_COMMAND", "", "CNI_COMMAND"),
        ("CNI_ARGS", "IP", "invalid pair 'IP'"),
        ("CNI_ARGS", "=x", "invalid pair"),
        ("CNI_ARGS", "FOO=10.0.0.1", "unknown args ['FOO']"),
    ],
)
def test_bad_variables_are_named(variable, value, says):
    error = refusal(environment={variable: value})
    assert error.code == 4
    assert says in error.message


@pytest.mark.parametrize("skip", ["1", "true", "True"])
def test_unknown_args_are_skipped_when_the_runtime_says_so(skip):
    assert parse(environment={"CNI_ARGS": f"IgnoreUnknown={skip};FOO=10.0.0.1"}).args["FOO"] == "10.0.0.1"


@pytest.mark.parametrize(
    ("stdin", "code", "says"),
    [
        (b"", 6, "network configuration"),
        (b"{", 6, "network configuration"),
        (b"[]", 6, "not an object"),
        (b"\xff", 6, "network configuration"),
        (b'{"cniVersion": "1.1.0"}', 7, "missing network name"),
        (b'{"cniVersion": "1.1.0", "name": ""}', 7, "missing network name"),
        (b'{"cniVersion": "1.1.0", "name": "a b"}', 7, "network name 'a b'"),
        (b'{"cniVersion": "1.1.0", "name": 3}', 6, "name is 3"),
        (b'{"cniVersion": "9.9.9", "name": "a"}', 1, "'9.9.9' is not supported"),
        (b'{"cniVersion": 1, "name": "a"}', 1, "is not supported"),
        (b'{"cniVersion": "1.1.0", "name": "a", "prevResult": 1}', 6, "prevResult"),
    ],
)
def test_bad_configurations_are_refused_by_code(stdin, code, says):
    with pytest.raises(CniError) as caught:
        protocol.parse(ENVIRONMENT, stdin)
    assert caught.value.code == code
    assert says in caught.value.message


def test_all_faults_are_told_at_once():
    error = refusal(environment={"CNI_IFNAME": "a/b"}, config={"name": ""}, without=["CNI_PATH", "CNI_NETNS"])
    assert error.code == 4
    for what in ("[CNI_NETNS,CNI_PATH] missing", "invalid CNI_IFNAME 'a/b'", "missing network name"):
        assert what in error.message


@pytest.mark.parametrize(
    ("verb", "version", "allowed"),
    [
        ("CHECK", "0.3.1", False),
        ("CHECK", "0.4.0", True),
        ("GC", "1.0.0", False),
        ("GC", "1.1.0", True),
        ("STATUS", "1.0.0", False),
        ("STATUS", "1.1.0", True),
        ("ADD", "0.1.0", True),
        ("DEL", "0.1.0", True),
    ],
)
def test_verbs_exist_from_a_version_on(verb, version, allowed):
    kwargs = {"environment": {"CNI_COMMAND": verb}, "config": {"cniVersion": version, "prevResult": {}}}
    if allowed:
        assert parse(**kwargs).version == version
    else:
        error = refusal(**kwargs)
        assert (error.code, f"does not allow {verb}" in error.message) == (1, True)


def test_no_version_means_the_first():
    assert protocol.parse(ENVIRONMENT, b'{"name": "podlane"}').version == "0.1.0"


def test_check_needs_the_result_of_add():
    assert refusal(environment={"CNI_COMMAND": "CHECK"}).code == 7


@pytest.mark.parametrize(
    ("config", "valid"),
    [
        ({}, None),
        ({"cni.dev/valid-attachments": []}, ()),
        ({"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}, (("a", "eth0"),)),
    ],
)
def test_no_list_of_valid_attachments_is_not_an_empty_list(config, valid):
    assert parse(environment={"CNI_COMMAND": "GC"}, config=config).valid_attachments == valid


@pytest.mark.parametrize("value", [3, [{}], ["a"]])
def test_a_list_of_attachments_that_is_none_is_refused(value):
    error = refusal(environment={"CNI_COMMAND": "GC"}, config={"cni.dev/valid-attachments": value})
    assert error.code == 6


def test_version_reads_nothing_else():
    request = protocol.parse({"CNI_COMMAND": "VERSION"}, b"")
    assert request.verb is Verb.VERSION
    assert json.loads(protocol.encode_versions())["supportedVersions"] == list(protocol.VERSIONS)


V4, V6 = ip_interface("10.244.1.5/32"), ip_interface("fd00:10:244:1::5/128")
G4, G6 = ip_address("169.254.1.1"), ip_address("fe80::1")
RESULT = Result(
    (Interface("pl1", "02:00:00:00:00:01", 1450), Interface("eth0", "02:00:00:00:00:02", 1450, "/ns")),
    (Ip(V4, G4, 1), Ip(V6, G6, 1)),
    (RouteEntry(ip_network("0.0.0.0/0"), G4), RouteEntry(ip_network("::/0"), G6)),
)
OLD = {
    "ip4": {
        "ip": "10.244.1.5/32",
        "gateway": "169.254.1.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    },
    "ip6": {
        "ip": "fd00:10:244:1::5/128",
        "gateway": "fe80::1",
        "routes": [{"dst": "::/0", "gw": "fe80::1"}],
    },
    "dns": {},
}
IPS = [
    {"interface": 1, "address": "10.244.1.5/32", "gateway": "169.254.1.1"},
    {"interface": 1, "address": "fd00:10:244:1::5/128", "gateway": "fe80::1"},
]
ROUTES = [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]
INTERFACES = [
    {"name": "pl1", "mac": "02:00:00:00:00:01"},
    {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/ns"},
]
MIDDLE = {
    "interfaces": INTERFACES,
    "ips": [{"version": "4", **IPS[0]}, {"version": "6", **IPS[1]}],
    "routes": ROUTES,
    "dns": {},
}
FORMS = {
    "0.1.0": OLD,
    "0.2.0": OLD,
    "0.3.0": MIDDLE,
    "0.3.1": MIDDLE,
    "0.4.0": MIDDLE,
    "1.0.0": {"interfaces": INTERFACES, "ips": IPS, "routes": ROUTES, "dns": {}},
    "1.1.0": {
        "interfaces": [{**interface, "mtu": 1450} for interface in INTERFACES],
        "ips": IPS,
        "routes": ROUTES,
        "dns": {},
    },
}


@pytest.mark.parametrize("version", protocol.VERSIONS)
def test_the_result_has_the_form_of_its_version(version):
    assert json.loads(encode_result(RESULT, version)) == {"cniVersion": version, **FORMS[version]}


@pytest.mark.parametrize("version", protocol.VERSIONS)
def test_a_result_is_read_as_it_was_written(version):
    found = decode(json.loads(encode_result(RESULT, version)))
    if version < "0.3.0":
        assert (found.interfaces, [ip.address for ip in found.ips]) == ((), [V4, V6])
    elif version < "1.1.0":
        assert [(i.name, i.mac, i.sandbox) for i in found.interfaces] == [
            (i.name, i.mac, i.sandbox) for i in RESULT.interfaces
        ]
        assert (found.ips, found.routes) == (RESULT.ips, RESULT.routes)
    else:
        assert found == RESULT


@pytest.mark.parametrize(
    ("previous", "says"),
    [
        ({"ips": [{"address": "10.0.0.1"}]}, "no prefix length"),
        ({"ips": [{"address": "x/8"}]}, "'x/8'"),
        ({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}, "is of interface 0"),
        ({"ips": 3}, "ips"),
        ({"routes": [{"dst": "nowhere"}]}, "nowhere"),
        ({"ip4": {}}, "ip4"),
    ],
)
def test_a_result_that_is_none_is_refused_by_what_is_wrong(previous, says):
    with pytest.raises(CniError) as caught:
        decode(previous)
    assert (caught.value.code, says in caught.value.message) == (6, True)


def test_a_later_plugins_result_comes_after_the_earlier_ones():
    merged = merge(RESULT, RESULT)
    assert merged.interfaces == RESULT.interfaces * 2
    assert [ip.interface for ip in merged.ips] == [1, 1, 3, 3]


def test_errors_are_told_in_json():
    shown = json.loads(protocol.encode_error(CniError(11, "later", "why"), "0.4.0"))
    assert shown == {"cniVersion": "0.4.0", "code": 11, "msg": "later", "details": "why"}


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b"", "1.1.0"),
        (b"[]", "1.1.0"),
        (b"{}", "0.1.0"),
        (b'{"cniVersion": "0.4.0"}', "0.4.0"),
        (b'{"cniVersion": "x"}', "1.1.0"),
        (b'{"cniVersion": {}}', "1.1.0"),
    ],
)
def test_errors_are_answered_in_the_version_of_the_request_if_it_has_one(stdin, version):
    assert protocol.version_of(stdin) == version
