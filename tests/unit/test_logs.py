"""Log lines: fields that stay, repeats left out, and no secrets in logs or anywhere else."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from podlane import logs, redaction
from podlane.redaction import REMOVED

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJwb2RsYW5lIn0.c2lnbmF0dXJl"
KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIA==\n-----END EC PRIVATE KEY-----"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What a JSON log has."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    logs.configure("info", "json")
    stream = io.StringIO()
    handler = root.handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)
    yield stream
    logs.about("")
    root.handlers[:], root.level = before


def lines(written: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.getvalue().splitlines()]


def test_a_line_of_json_has_fields_that_stay(written: io.StringIO) -> None:
    logs.about("node-1", lambda: 7)
    log = logging.getLogger("podlane.agent.reconciler")
    log.warning(
        "routes %s: %s", "10.0.0.0/8", "busy", extra={"object": "routes 10.0.0.0/8", "error": OSError("busy")}
    )
    try:
        raise ValueError(f"password={TOKEN}")
    except ValueError:
        log.exception("it failed")
    first, second = lines(written)
    stamp = first.pop("ts")
    assert (stamp[4], stamp[10], stamp[-1]) == ("-", "T", "Z")
    assert first == {
        "level": "warning",
        "logger": "podlane.agent.reconciler",
        "msg": "routes 10.0.0.0/8: busy",
        "node": "node-1",
        "generation": 7,
        "object": "routes 10.0.0.0/8",
        "error": "busy",
    }
    assert (second["level"], second["msg"]) == ("error", "it failed")
    assert "ValueError" in second["exception"]
    assert TOKEN not in second["exception"]


def test_the_same_again_is_left_out_and_counted() -> None:
    now_s = [0.0]
    repeats = logs.Repeats(lambda: now_s[0])

    def passes(message: str, line: int = 1, level: int = logging.WARNING) -> int:
        """-1: left out; else how many were before it."""
        record = logging.LogRecord("x", level, "x.py", line, message, (), None)
        return getattr(record, "repeated", 0) if repeats.filter(record) else -1

    assert [passes("a") for _ in range(4)] == [0, -1, -1, -1]
    assert passes("b", line=2) == 0
    assert [passes("c", line=3, level=logging.DEBUG) for _ in range(3)] == [0, 0, 0]
    now_s[0] = logs.QUIET_S
    assert [passes("a"), passes("a")] == [3, -1]
    # One place that says something else each time; information is not warnings.
    assert [passes(f"{n}", line=4) for n in range(logs.BURST + 2)].count(-1) == 2
    assert -1 not in [passes(f"{n}", line=5, level=logging.INFO) for n in range(logs.BURST + 2)]
    now_s[0] = 2 * logs.QUIET_S
    assert passes("anew", line=4) == 2


def test_what_is_left_out_is_told(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    handler = logging.getLogger().handlers[0]
    (repeats,) = handler.filters
    monkeypatch.setattr(repeats, "_now", lambda: now_s[0])
    for _ in range(3):
        now_s[0] += logs.QUIET_S / 2
        for _ in range(10):
            logging.getLogger("x").warning("again")
    assert [line.get("repeated") for line in lines(written)] == [None, 19]


@pytest.mark.parametrize(
    "text",
    [
        "password: hunter22",
        "{'password': 'hunter22'}",
        '{"bgp": {"password": "hunter22", "bfd": true}}',
        'password "hunter22";',
        "DB_PASSWORD=hunter22 next",
        "PresharedKey = hunter22",
        "private_key=hunter22",
        "  client-key-data: hunter22",
        "https://admin:hunter22@api:6443/x",
        "Authorization: Bearer hunter22hunter22",
        "curl -H 'authorization: Basic hunter22'",
        "--token hunter22 --other",
        "--client-secret=hunter22",
        "a token: hunter22, and more",
    ],
)
def test_secrets_go_by_their_names(text: str) -> None:
    found = redaction.text(text)
    assert "hunter22" not in found
    assert REMOVED in found


@pytest.mark.parametrize(
    "text",
    [
        "the token file /run/token cannot be read",
        "tokenFile: /var/run/secrets/token",
        'routes 10.0.0.0/8: "busy"',
        "https://10.96.0.1:443/api/v1/secrets",
        "password: ''",
        '{"token": null}',
        "key: value",
        "publicKey: abc",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redaction.text(text) == text


def test_secrets_go_by_what_they_look_like_and_by_what_they_are() -> None:
    assert redaction.text(f"before {KEY} after") == f"before {REMOVED} after"
    assert redaction.text(f"cut off {KEY[:50]}") == f"cut off {REMOVED}"
    rest = "end of a line\nMHcCAQEEIA\nMHcCAQEEIA==\n-----END EC PRIVATE KEY-----\nnext"
    assert redaction.text(rest) == f"end of a line\n{REMOVED}\nnext"
    assert redaction.text(f"got {TOKEN}!") == f"got {REMOVED}!"
    assert redaction.text("a hunter22 b", ["hunter22", "b"]) == f"a {REMOVED} b"


def test_structures_lose_them_at_any_depth() -> None:
    found = redaction.value(
        {
            "bgp": {"password": "hunter22", "peers": [{"name": "tor", "password": ""}]},
            "wireguard": {"presharedKey": base64.b64encode(bytes(32)).decode()},
            "text": f"Bearer {TOKEN}",
            "numbers": (1, 2.5, None),
        }
    )
    assert found == {
        "bgp": {"password": REMOVED, "peers": [{"name": "tor", "password": ""}]},
        "wireguard": {"presharedKey": REMOVED},
        "text": f"Bearer {REMOVED}",
        "numbers": [1, 2.5, None],
    }
