"""Bug reports where little is there: of a node without an agent, of what cannot be read; and their bounds."""

from __future__ import annotations

import base64
import json
import os
import tarfile
from pathlib import Path

import pytest

from podlane.errors import KernelError, LabError
from podlane.lab.bugreport import node, secrets
from podlane.lab.bugreport.archive import Archive
from podlane.lab.bugreport.run import Here, Wish, of_node

PEM = "-----BEGIN EC PRIVATE KEY-----\\nbWFueSBieXRlcyBvZiBhIGtleQ==\\n-----END EC PRIVATE KEY-----"
KUBECONFIG = f"""
current-context: x
contexts: [{{name: x, context: {{cluster: x, user: x}}}}]
clusters: [{{name: x, cluster: {{server: "https://127.0.0.1:1"}}}}]
users: [{{name: x, user: {{token: token-hunter22, client-key-data: {base64.b64encode(PEM.encode()).decode()},
  client-certificate-data: {base64.b64encode(b"no certificate").decode()}}}}}]
"""


def read(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        found = {}
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read().decode()
        return found


def test_a_node_where_nothing_works(tmp_path: Path) -> None:
    """No agent, a broken configuration, an API that does not answer: the kernel's part is there."""
    config, state, where = tmp_path / "config.yaml", tmp_path / "state", tmp_path / "node.tar.gz"
    config.write_text("bgp: {password: config-hunter22}\nnonsense: true\n")
    state.mkdir()
    (state / "leases.sqlite").write_text("no database at all, whatever its name")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    made = of_node(Here(tmp_path / "agent.sock", state, config, kubeconfig), Wish(where))
    found = read(made.path)
    assert made.path == where
    assert "lo" in found["node/kernel/links.txt"]
    assert json.loads(found["node/config.yaml.json"])["bgp"]["password"] == "(removed)"
    errors = {
        entry["name"]: entry["error"]
        for entry in json.loads(found["MANIFEST.json"])["files"]
        if "error" in entry
    }
    assert "does not answer" in errors["node/agent/status.json"]
    assert "leases.sqlite" in errors["node/leases.json"]
    assert any(name.startswith("cluster/") for name in errors)
    assert not any("hunter22" in text for text in found.values())
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


def test_secrets_are_known_by_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = tmp_path / "kubeconfig", tmp_path / "wireguard.key"
    path.write_text(KUBECONFIG)
    raw = bytes(range(32))
    key.write_text(base64.b64encode(raw).decode() + "\n")
    monkeypatch.setenv("SOME_API_TOKEN", "environment-hunter22")
    monkeypatch.setenv("SOME_TOKEN_SHORT", "1")
    found = secrets.known(
        [path, tmp_path / "absent"],
        [key, tmp_path / "absent"],
        [{"a": [{"password": "deep-hunter22"}]}, None],
    )
    assert {
        "token-hunter22",
        "environment-hunter22",
        "deep-hunter22",
        raw.hex(),
        base64.b64encode(raw).decode(),
    } <= found
    assert base64.b64encode(b"token-hunter22").decode() in found
    assert base64.b64encode(PEM.encode()).decode() in found
    assert "1" not in found


def test_a_long_log_is_told_from_a_whole_line_on(tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    log.write_text("first\n" + "x" * node.LOG_BYTES + "\nlast\n")
    text = node.tail(log)
    assert text is not None
    assert text.startswith("[…")
    assert text.splitlines()[1:] == ["last"]
    assert node.tail(tmp_path / "absent") is None


def refuse() -> str:
    raise KernelError.of(1, "read it")


def test_what_fails_is_noted_and_the_rest_goes_on(tmp_path: Path) -> None:
    where = tmp_path / "x.tar.gz"
    with Archive(where, ["known-secret"]) as archive:
        archive.add("refused.txt", refuse)
        archive.add("nothing.txt", lambda: None)
        archive.add("text.txt", lambda: "a known-secret b")
        archive.add("object.json", lambda: {"token": "x" * 9, "list": ["known-secret", 1]})
    found = read(where)
    assert set(found) == {"text.txt", "object.json", "MANIFEST.json"}
    assert found["text.txt"] == "a (removed) b"
    assert json.loads(found["object.json"]) == {"token": "(removed)", "list": ["(removed)", 1]}
    entries = {entry["name"]: entry for entry in json.loads(found["MANIFEST.json"])["files"]}
    assert "read it" in entries["refused.txt"]["error"]
    assert "nothing.txt" not in entries
    assert os.stat(where).st_mode & 0o777 == 0o600


def test_it_is_as_large_as_it_may_be(tmp_path: Path) -> None:
    where = tmp_path / "x.tar.gz"
    with Archive(where, most_bytes=1000, most_file_bytes=600) as archive:
        archive.add("long.txt", lambda: "first" + "x" * 5000 + "last")
        archive.add("more.txt", lambda: "y" * 5000)
        archive.add("none.txt", lambda: "z")
    found = read(where)
    assert found["long.txt"].startswith("first")
    assert found["long.txt"].endswith("last")
    assert "4409 bytes left out" in found["long.txt"]
    entries = {entry["name"]: entry for entry in json.loads(found["MANIFEST.json"])["files"]}
    assert entries["long.txt"]["cut"] == 4409
    assert entries["none.txt"]["error"] == "the report is as large as it may be"
    assert sum(len(text) for name, text in found.items() if name != "MANIFEST.json") < 1200


def test_nothing_is_left_of_a_report_that_was_not_made(tmp_path: Path) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Archive(tmp_path / "x.tar.gz") as archive:
        archive.add("a.txt", interrupted)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(LabError, match="No such file or directory"):
        Archive(tmp_path / "absent" / "x.tar.gz")
