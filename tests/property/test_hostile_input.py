"""Bytes from outside end in a result or in one of the parser's declared errors, whatever they are."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.cni import aside, runtime_cache
from podlane.engines.bird.driver import session_states
from podlane.engines.wireguard import uapi
from podlane.errors import ConfigError
from podlane.kernel.netlink import Message, Truncated, attribute
from podlane.kernel.nft import base_chains, codec, ruleset
from podlane.kernel.rtnl import addresses, links, neighbours, routes
from podlane.model import config
from podlane.watch import configuration, http1, kubeconfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def mutated(good: bytes) -> st.SearchStrategy[bytes]:
    """good with some of its bytes others, a piece left out, or a piece twice."""

    @st.composite
    def mutate(draw: Any) -> bytes:
        found = bytearray(good)
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(found)))
            match draw(st.sampled_from(["set", "cut", "again", "put"])):
                case "set" if at < len(found):
                    found[at] = draw(st.integers(0, 255))
                case "cut":
                    del found[at : at + draw(st.integers(1, 20))]
                case "again":
                    found[at:at] = found[at : at + 20]
                case _:
                    found[at:at] = draw(st.binary(max_size=8))
        return bytes(found)

    return mutate()


# --- HTTP ---

GOOD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n1a;name=value\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n"
)
PLAIN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello"


@settings(max_examples=300)
@given(st.binary(max_size=300) | mutated(GOOD) | mutated(PLAIN))
def test_what_a_server_answers_is_an_answer_or_an_http_error(data: bytes) -> None:
    async def read() -> bytes:
        reader = asyncio.StreamReader(limit=1 << 12)
        reader.feed_data(data)
        reader.feed_eof()
        return await (await http1._head(reader)).read()

    with suppress(http1.HttpError):
        assert len(asyncio.run(read())) <= len(data)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, b"x" * (1 << 22)])
def test_a_head_without_end_is_refused_before_it_fills_the_memory(head: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader(limit=1 << 12)
        reader.feed_data(head)
        reader.feed_eof()
        await http1._head(reader)

    with pytest.raises(http1.HttpError):
        asyncio.run(read())


# --- configuration ---

KUBECONFIG = json.dumps(
    {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u", "namespace": "n"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://192.0.2.1:6443", "tls-server-name": "x"}}],
        "users": [{"name": "u", "user": {"token": "secret", "exec": {"command": "x", "args": ["a"]}}}],
    }
).encode()


@settings(max_examples=200)
@given(data=st.binary(max_size=200) | mutated(KUBECONFIG) | JSON.map(lambda each: json.dumps(each).encode()))
def test_a_kubeconfig_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile-kubeconfig"
    path.write_bytes(data)
    with suppress(ConfigError):
        kubeconfig.parse([path])


CONFIG = json.dumps(
    {
        "ipFamilies": ["IPv4"],
        "podCIDRs": ["10.244.0.0/16"],
        "nodeCidrMaskSizes": [24],
        "backend": {"port": 8472},
        "bgp": {},
        "services": {"nodePortRange": "1-2"},
        "others": {"takeOver": True},
    }
).encode()


@settings(max_examples=200)
@given(data=st.binary(max_size=200) | mutated(CONFIG))
def test_a_network_config_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile-config"
    path.write_bytes(data)
    with suppress(ConfigError):
        configuration.read(str(path))


KEYS = sorted(config.NetworkConfig.__struct_encode_fields__)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=8), JSON, max_size=5))
def test_a_document_is_a_network_config_or_refused(document: dict[str, Any]) -> None:
    with suppress(ConfigError):
        config.parse(document)


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as refused:
        configuration.read(str(path))
    assert len(str(refused.value)) < 2000


# --- CNI's files ---

CACHED = json.dumps(
    {
        "kind": "cniCacheV1",
        "containerId": "a",
        "ifName": "eth0",
        "networkName": "cbr0",
        "cniArgs": [["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", "web"]],
        "capabilityArgs": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]},
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.244.1.5/24", "gateway": "10.244.1.1", "interface": 1}],
        },
    }
).encode()


def test_a_runtimes_cache_is_read() -> None:
    found = runtime_cache.parse(CACHED)
    assert (found.network, found.key, found.pod_name) == ("cbr0", ("a", "eth0"), "web")
    assert [str(each) for each in found.addresses] == ["10.244.1.5/24"]
    assert (found.sandbox, found.mappings[0].host_port) == ("/run/netns/x", 80)


@settings(max_examples=300)
@given(st.binary(max_size=200) | mutated(CACHED) | JSON.map(lambda each: json.dumps(each).encode()))
def test_a_runtimes_cache_is_read_or_refused(data: bytes) -> None:
    aside.first_type(data)
    with suppress(ValueError):
        found = runtime_cache.parse(data)
        assert found.sandbox is not None
        assert found.addresses is not None


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_nested_too_deep_is_refused(data: bytes) -> None:
    assert aside.first_type(data) == ""
    with pytest.raises(ValueError, match=r"."):
        runtime_cache.parse(data)


# --- the kernel, and engines ---

UNPACK = (
    links.unpack,
    routes.unpack,
    neighbours.unpack_neighbour,
    neighbours.unpack_fdb,
    addresses.unpack,
    base_chains.unpack,
    ruleset.unpack_chain,
    ruleset.unpack_rule,
    codec.unpack_elements,
)
ATTRIBUTES = st.lists(st.tuples(st.integers(0, 60), st.binary(max_size=24)), max_size=8).map(
    lambda pairs: b"".join(attribute(kind, payload) for kind, payload in pairs)
)


@settings(max_examples=300)
@given(st.sampled_from(UNPACK), st.binary(max_size=32), ATTRIBUTES | st.binary(max_size=80))
def test_netlink_is_read_or_refused(unpack: Any, head: bytes, rest: bytes) -> None:
    with suppress(Truncated, struct.error, ValueError, LookupError):
        found = unpack(Message(0, 0, 1, head + rest))
        list(found) if unpack is codec.unpack_elements else found


@given(st.text(max_size=200) | mutated(b"BIRD 2.0.12 ready.\nn1 BGP --- up 10:00 Established\n").map(
    lambda each: each.decode(errors="replace")))  # fmt: skip
def test_birds_answers_are_read(text: str) -> None:
    assert isinstance(session_states(text), dict)


WIREGUARD = (
    b"private_key="
    + b"a" * 64
    + b"\nlisten_port=51820\npublic_key="
    + b"b" * 64
    + b"\nallowed_ip=10.0.0.0/8\nerrno=0\n\n"
)


@given((st.binary(max_size=200) | mutated(WIREGUARD)).map(lambda each: each.decode(errors="replace")))
def test_wireguards_answers_are_read_or_refused(text: str) -> None:
    with suppress(ValueError, LookupError):
        uapi.parse(text)
