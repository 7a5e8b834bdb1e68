"""Whatever a runtime sends: an answer of the specification, and never an internal fault."""

from __future__ import annotations

import json

from hypothesis import example, given, settings
from hypothesis import strategies as st

from podlane.cni import plugins, protocol, results, wire
from podlane.errors import CniError
from tests.cni_corpus import entries

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TYPES = plugins.load()
IPAM_KEYS = (
    "type",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "ranges",
    "routes",
    "dataDir",
    "addresses",
)
IPAM = st.dictionaries(st.sampled_from(IPAM_KEYS), JSON | st.sampled_from(sorted(TYPES)), max_size=5)
KEYS = (
    *("cniVersion", "name", "type", "ipam", "prevResult", "runtimeConfig", "args", "dns", "bridge", "mtu"),
    *(
        "isGateway",
        "vlan",
        "vlanTrunk",
        "sysctl",
        "mac",
        "delegate",
        "subnetFile",
        "cni.dev/valid-attachments",
    ),
)
CAPABILITIES = st.dictionaries(
    st.sampled_from(["ips", "mac", "ipRanges", "dns", "aliases", "portMappings", "bandwidth"]),
    JSON,
    max_size=4,
)
CONFIG = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(KEYS, JSON)
    | {
        "cniVersion": st.sampled_from(protocol.VERSIONS),
        "name": st.just("net"),
        "type": st.sampled_from(sorted(TYPES)) | JSON,
        "ipam": IPAM | JSON,
        "runtimeConfig": CAPABILITIES | JSON,
        "args": st.fixed_dictionaries({"cni": CAPABILITIES | JSON}) | JSON,
    },
)
VARIABLES = ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH", "CNI_ARGS", protocol.EXECUTABLE)
VALUES = ("a", "eth0", "/x", "IP=1;MAC=2", "IP=10.0.0.1", "GATEWAY=x")
ENVIRONMENT = st.fixed_dictionaries(
    {"CNI_COMMAND": st.sampled_from(list(protocol.Verb)) | st.text(max_size=5)},
    optional={name: st.sampled_from(VALUES) | st.text(max_size=20) for name in VARIABLES},
)


def faults_of(request: protocol.Request) -> list[str]:
    """As the agent asks: every type is asked about every configuration."""
    return [fault for kind in TYPES.values() for fault in kind.faults(request)]


def read(environment: dict[str, str], stdin: bytes) -> None:
    protocol.version_of(stdin)
    refused = None
    try:
        request = protocol.parse(environment, stdin, faults_of)
        if request.previous is not None:
            results.decode(request.previous)
    except CniError as error:
        refused = error
    if refused is not None:
        assert 0 < refused.code < 100
        assert json.loads(protocol.encode_error(refused, "1.1.0"))["msg"]


@settings(deadline=None, max_examples=300)
@given(ENVIRONMENT, CONFIG)
def test_any_configuration_is_read_or_refused(environment, config):
    read(environment, json.dumps(config).encode())


def test_the_corpus_is_read_or_refused(tmp_path):
    for entry in entries(tmp_path):
        read(entry.environment, entry.stdin)


GOOD = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "a", "CNI_IFNAME": "b", "CNI_NETNS": "c", "CNI_PATH": "d"}


@settings(deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"{")
@example(b'{"name": "\\ud800", "cniVersion": "1.1.0"}')
@example(b'{"cniVersion": "1.1.0", "name": "a", "ipam": ' + b"[" * 100_000)
@example(b'{"cniVersion": "1.1.0", "name": "a", "mtu": ' + b"9" * 5_000 + b"}")
@example(b'{"cniVersion": "1.1.0", "name": "a", "x": "' + b"y" * 1_000_000 + b'"}')
@example(b'{"name": "a", "cniVersion": ["1.1.0"]}')
@example(b"\xff\xfe{\x00}\x00")
def test_any_bytes_are_read_or_refused(stdin):
    read(GOOD, stdin)


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_any_spooled_file_is_read_or_refused(data):
    try:
        environment, stdin = wire.unpack_request(data)
    except ValueError:
        return
    assert isinstance(environment, dict)
    assert data.endswith(stdin)


@given(st.builds(results.decode, st.just({})) | st.none(), st.sampled_from(protocol.VERSIONS))
def test_an_empty_result_is_one_in_every_version(previous, version):
    merged = results.merge(previous, results.Result())
    assert results.decode(results.document(merged, version)) == results.Result()
