# ruff: noqa: E501  (one row a case)
"""Manifests: what `-f` names, and every way it can be wrong."""

from __future__ import annotations

import http.server
import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import ConfigError
from podlane.lab import manifests, yamls

CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {}}}\n"


def value(text: str) -> Any:
    (document,) = yamls.documents(text)
    assert document.problems == []
    return document.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y", True),
        ("No", False),
        ("on", True),
        ("'on'", "on"),
        ("yEs", "yEs"),
        ("", None),
        ("~", None),
        ("Null", None),
        ("nULL", "nULL"),
        ("22:22", "22:22"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("0644", 0o644),
        ("0o644", 0o644),
        ("0899", 899),
        ("0x1F", 31),
        ("0b11", 3),
        ("1_000", 1000),
        ("1e3", 1000),
        ("1.50", 1.5),
        (".5", 0.5),
        ("1.2.3", "1.2.3"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("1e999", "1e999"),
        ("'80'", "80"),
        ("=", "="),
        ("+5", 5),
        ("-", [None]),
        ("v1", "v1"),
    ],
)
def test_scalars_are_read_as_kubectl_reads_them(text: str, expected: Any) -> None:
    found = value(f"a: {text}")["a"] if text != "-" else value("a:\n-")["a"]
    assert found == expected
    assert type(found) is type(expected)


def test_keys_are_strings() -> None:
    assert value("{1: a, on: b, ~: c, 1.5: d, x: e}") == {
        "1": "a",
        "true": "b",
        "null": "c",
        "1.5": "d",
        "x": "e",
    }


def test_anchors_and_merge_keys() -> None:
    text = "base: &b {a: 1, b: 2}\nover: {<<: *b, b: 3}\nmany: {<<: [{a: 5}, *b]}"
    found = value(text)
    assert found["over"] == {"a": 1, "b": 3}
    assert found["many"] == {"a": 5, "b": 2}


def test_aliases_cannot_grow_without_bound() -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10))
    (document,) = yamls.documents("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + levels)
    assert "more than 1000000 values" in document.problems[0].text


def read(tmp_path: Path, text: str, name: str = "web.yaml") -> tuple[list[manifests.Manifest], list[str]]:
    """Messages with the file's name alone."""
    path = tmp_path / name
    path.write_text(text)
    found, errors = manifests.read([str(path)])
    return found, [str(e).replace(str(tmp_path) + "/", "") for e in errors]


BAD = [
    ("a: [\n", "web.yaml: document 1: not YAML: did not find expected node content (line 2)"),
    ("a: b: c", "web.yaml: document 1: not YAML: mapping values are not allowed in this context (line 1)"),
    ("\tx: 1", "web.yaml: document 1: not YAML: found character that cannot start any token (line 1)"),
    ("just words", "web.yaml: document 1: expected an object (apiVersion, kind, metadata), found a string"),
    ("[1]", "web.yaml: document 1: expected an object (apiVersion, kind, metadata), found a list"),
    ("kind: Pod\nmetadata: {name: a}", "web.yaml: document 1: Pod a: apiVersion: is missing"),
    ("apiVersion: v1\nmetadata: {name: a}", "web.yaml: document 1: object a: kind: is missing"),
    ("apiVersion: 1\nkind: Pod\nmetadata: {name: a}", "web.yaml: document 1: Pod a: apiVersion: expected a string, found the number 1"),
    ("apiVersion: v1\nkind: Pod", "web.yaml: document 1: Pod ...: metadata: is missing"),
    ("apiVersion: v1\nkind: Pod\nmetadata: [a]", "web.yaml: document 1: Pod ...: metadata: expected a mapping, found a list"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {}", "web.yaml: document 1: Pod ...: metadata.name: is missing"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: 5}", "web.yaml: document 1: Pod 5: metadata.name: expected a string, found the number 5; quote it"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {x: 1,\n x: 2}", "web.yaml: document 1: Pod a: spec.x: is given twice (first in line 4) (line 5)"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {x: .inf}", "web.yaml: document 1: Pod a: spec.x: .inf cannot be written in JSON; quote it if it is a string (line 4)"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: !!python/object:os.x {}", "web.yaml: document 1: Pod a: spec: unknown tag tag:yaml.org,2002:python/object:os.x (line 4)"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: !mine 5", "web.yaml: document 1: Pod a: spec: unknown tag !mine (line 4)"),
    ("apiVersion: v1\nkind: List\nitems: 5", "web.yaml: document 1: List: items: expected a list, found the number 5"),
    ("apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod, metadata: {}}]", "web.yaml: document 1, items[0]: Pod ...: metadata.name: is missing"),
    ("apiVersion: policy/v1beta1\nkind: PodSecurityPolicy\nmetadata: {name: a}", "web.yaml: document 1: PodSecurityPolicy a: policy/v1beta1 PodSecurityPolicy was removed from Kubernetes; use the namespace labels of Pod Security Admission"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    """And the good document after it is read all the same, if the stream is readable that far."""
    found, errors = read(tmp_path, text)
    assert (found, errors) == ([], [message])
    if "not YAML" not in message:
        found, errors = read(tmp_path, f"{text}\n---\n{CONFIG_MAP.format('good')}")
        assert [m.object["metadata"]["name"] for m in found] == ["good"]
        assert errors == [message]


def test_load_refuses_the_whole_input(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(CONFIG_MAP.format("good") + "---\nkind: Pod\n---\na: [")
    with pytest.raises(ConfigError) as caught:
        manifests.load([str(path)])
    assert len(str(caught.value).splitlines()) == 3
    assert caught.value.exit_status == 2


def test_two_objects_of_one_name(tmp_path: Path) -> None:
    """One name is one kind's in one namespace; "default" said and unsaid are one."""
    text = "\n---\n".join(
        [
            CONFIG_MAP.format("a"),
            CONFIG_MAP.format("a, namespace: default"),
            CONFIG_MAP.format("a, namespace: other"),
            CONFIG_MAP.format("a").replace("ConfigMap", "Secret"),
        ]
    )
    found, errors = read(tmp_path, text)
    assert errors == [
        "web.yaml: document 2: ConfigMap default/a: metadata.name: already used by "
        + f"{tmp_path}/web.yaml: document 1".replace(f"{tmp_path}/", "")
    ]
    assert [m.object["kind"] for m in found] == ["ConfigMap", "Secret"]


def test_lists_are_expanded_and_empty_documents_skipped(tmp_path: Path) -> None:
    text = """# nothing here
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}
- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: ConfigMap, metadata: {name: b}}]}
---
apiVersion: v1
kind: ConfigMapList
items: [{metadata: {name: c}}]
---
"""
    found, errors = read(tmp_path, text)
    assert errors == []
    assert [m.object["metadata"]["name"] for m in found] == ["a", "b", "c"]
    assert found[2].object["kind"] == "ConfigMap"


def test_ten_megabytes(tmp_path: Path) -> None:
    big = CONFIG_MAP.format("big") + f"data:\n  small: x\n  large: {'x' * (10 << 20)}\n"
    started_s = time.process_time()
    found, errors = read(tmp_path, f"{big}---\n{CONFIG_MAP.format('good')}")
    assert time.process_time() - started_s < 30
    assert [m.object["metadata"]["name"] for m in found] == ["good"]
    assert errors == [
        "web.yaml: document 1: ConfigMap big: data.large: 10.0 MiB here of 10.0 MiB in all; "
        "an object may have 3 MiB"
    ]


def test_a_file_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "MAX_INPUT_BYTES", 1 << 20)
    _, errors = manifests.read(["/dev/zero"])
    assert [str(e) for e in errors] == ["/dev/zero: 1.0 MiB; a file may have 1 MiB"]


def test_directories_urls_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.yaml", "a.yml", "c.json", "ignored.txt"):
        (tmp_path / name).write_text(CONFIG_MAP.format(name.partition(".")[0]))
    (tmp_path / "c.json").write_text('{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}')
    stdin = io.TextIOWrapper(io.BytesIO(CONFIG_MAP.format("stdin").encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    found = manifests.load([str(tmp_path), "-"])
    assert [m.object["metadata"]["name"] for m in found] == ["a", "b", "c", "stdin"]
    assert found[-1].where == "standard input: document 1"
    assert manifests.load([f"file://{tmp_path}/b.yaml"])[0].object["metadata"]["name"] == "b"


def test_urls_of_this_machine(tmp_path: Path) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/web.yaml" else 404)
            self.end_headers()
            self.wfile.write(CONFIG_MAP.format("web").encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        found, errors = manifests.read([f"{base}/web.yaml", f"{base}/other.yaml"])
        server.shutdown()
        thread.join()
    assert [m.object["metadata"]["name"] for m in found] == ["web"]
    assert [str(e) for e in errors] == [f"{base}/other.yaml: Not Found"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    names = ["missing.yaml", "empty", "binary.yaml"]
    _, errors = manifests.read(
        [*(str(tmp_path / n) for n in names), "http://example.com/a.yaml", "file://host/a"]
    )
    assert [str(e).replace(f"{tmp_path}/", "") for e in errors] == [
        "missing.yaml: No such file or directory",
        "empty: no manifests here (*.yaml, *.yml, *.json)",
        "binary.yaml: not YAML: byte 0 is not UTF-8",
        "http://example.com/a.yaml: only URLs of this machine are read (localhost, 127.0.0.1, ::1); "
        "download it first",
        "file://host/a: names another host; use file:///PATH",
    ]


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("v", 'no matches for kind "Pod" in version "v2"', 'a.yaml: Pod v: no matches for kind "Pod" in'),
        ("web", 'Pod "web" is invalid: spec', 'a.yaml: Pod "web" is invalid'),
        ("web", 'Pod "web-1" is invalid: spec', 'a.yaml: Pod web: Pod "web-1" is invalid'),
    ],
)
def test_a_message_names_its_object_once(name: str, said: str, told: str) -> None:
    obj = {"apiVersion": "v2", "kind": "Pod", "metadata": {"name": name}}
    assert manifests.Manifest("a.yaml", obj).message(said).startswith(told)
