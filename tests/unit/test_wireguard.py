"""WireGuard in user space: the protocol's lines, keys, and the real program as the driver keeps it."""

from __future__ import annotations

import base64
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from podlane.engines.wireguard import keys, uapi
from podlane.engines.wireguard.uapi import Device, Peer
from podlane.errors import ConfigError
from podlane.model import config as configs

A, B = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
PODS = (ip_network("10.244.2.0/24"), ip_network("fd00:10:244:2::/64"))
PEER = Peer((ip_address("172.30.2.12"), 51820), PODS)
DEVICE = Device(bytes([9]) * 32, 51820, {A: PEER})


def text(device: Device) -> str:
    """A device as `get` shows it."""
    lines = [f"private_key={device.private.hex()}", f"listen_port={device.port}"]
    for line in uapi.changes(device.peers, ()):
        if line != "replace_allowed_ips=true":
            lines.append(line)
    return "\n".join([*lines, "protocol_version=1", "last_handshake_time_sec=0", "errno=0"]) + "\n\n"


@pytest.mark.parametrize(
    "device",
    [
        DEVICE,
        Device(bytes(32), 0, {}),
        replace(DEVICE, peers={A: PEER, B: replace(PEER, endpoint=(ip_address("fd00::1"), 7), allowed=())}),
        replace(DEVICE, peers={A: replace(PEER, preshared=bytes([7]) * 32, keepalive_s=25, endpoint=None)}),
    ],
)
def test_what_was_written_is_read_back_and_then_nothing_differs(device: Device) -> None:
    assert uapi.parse(text(device)) == device
    assert uapi.difference(device, uapi.parse(text(device))) == []


def test_only_what_differs_is_written() -> None:
    more = replace(DEVICE, peers={A: PEER, B: PEER})
    assert uapi.difference(more, DEVICE)[0] == f"public_key={'02' * 32}"
    assert f"public_key={'01' * 32}" not in uapi.difference(more, DEVICE)
    assert uapi.difference(DEVICE, more) == [f"public_key={'02' * 32}", "remove=true"]
    assert uapi.difference(replace(DEVICE, port=7), DEVICE) == ["listen_port=7"]


@pytest.mark.parametrize("answer", ["", "errno=x\n\n", "hello\n\n"])
def test_what_is_no_answer_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        uapi.error_of(answer)


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "wireguard.key"
    private = keys.kept(path)
    assert keys.kept(path) == private
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("scribble")
    again = keys.kept(path)
    assert again != private
    assert keys.kept(path) == again


@pytest.mark.parametrize(
    ("wireguard", "why"),
    [
        ({"presharedKey": "short"}, "wireguard.presharedKey: not 32 bytes in base64"),
        ({"presharedKey": base64.b64encode(bytes(31)).decode()}, "wireguard.presharedKey: not 32 bytes"),
        ({"port": 0}, "wireguard.port: 0 is not between 1 and 65535"),
        ({"keepaliveSeconds": 65536}, "wireguard.keepaliveSeconds: 65536 is not between 0 and 65535"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wireguard: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        configs.parse({"backend": {"type": "wireguard"}, "wireguard": wireguard})
    assert why in str(refusal.value)


def test_peers_without_a_handshake_are_told() -> None:
    keys = [base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2, 3)]
    answer = "".join(
        f"public_key={base64.b64decode(key).hex()}\nlast_handshake_time_sec={when}\n"
        for key, when in zip(keys, (0, 1764000000, 0), strict=True)
    )
    assert uapi.silent(f"{answer}errno=0\n\n") == {keys[0], keys[2]}
