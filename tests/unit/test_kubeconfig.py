from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from podlane.errors import ConfigError
from podlane.watch import kubeconfig


def document(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443/"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    return base | changes


def write(path: Path, value: Any) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def cluster(**fields: Any) -> dict[str, Any]:
    return document(clusters=[{"name": "c", "cluster": {"server": "https://h:1", **fields}}])


def user(**fields: Any) -> dict[str, Any]:
    return document(users=[{"name": "u", "user": fields}])


def test_server_token_and_namespace(tmp_path: Path) -> None:
    access = kubeconfig.load(write(tmp_path / "config", document()))
    assert (access.server, access.token, access.namespace) == ("https://127.0.0.1:6443", "secret", "ns")


def test_yaml_is_read_too(tmp_path: Path) -> None:
    import yaml

    assert kubeconfig.load(write(tmp_path / "config", yaml.safe_dump(document()))).token == "secret"


def test_embedded_data_wins_over_files_and_files_are_relative_to_their_kubeconfig(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("FILE")
    path = tmp_path / "config"
    access = kubeconfig.load(write(path, cluster(**{"certificate-authority": "ca.crt"})))
    assert access.ca_pem == b"FILE"
    data = base64.b64encode(b"DATA").decode()
    both = cluster(**{"certificate-authority": "ca.crt", "certificate-authority-data": data})
    assert kubeconfig.load(write(path, both)).ca_pem == b"DATA"
    assert kubeconfig.load(write(path, user(tokenFile="t"))).token_file == str(tmp_path / "t")


def test_another_context_can_be_asked_for(tmp_path: Path) -> None:
    contexts = [
        {"name": "lab", "context": {"cluster": "c", "user": "u"}},
        {"name": "anon", "context": {"cluster": "c"}},
    ]
    access = kubeconfig.load(write(tmp_path / "config", document(contexts=contexts)), "anon")
    assert (access.token, access.namespace) == ("", "default")


def test_of_several_files_the_first_that_has_a_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "1", {"users": [{"name": "u", "user": {"token": "first"}}]})
    second = write(tmp_path / "2", document())
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'absent'}:{second}")
    assert kubeconfig.load().token == "first"


def test_a_pod_finds_the_api_by_its_service_account(tmp_path: Path) -> None:
    for name, text in (("token", "t"), ("ca.crt", "CA"), ("namespace", "kube-system")):
        (tmp_path / name).write_text(text)
    environ = {"KUBERNETES_SERVICE_HOST": "fd00:10:96::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = kubeconfig.in_cluster(environ, tmp_path)
    assert access.server == "https://[fd00:10:96::1]:443"
    assert (access.token_file, access.ca_pem, access.namespace) == (
        str(tmp_path / "token"),
        b"CA",
        "kube-system",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a kubeconfig"),
        (": :\n- x", "not a kubeconfig"),
        ([], "expected a mapping, found list"),
        (document(**{"current-context": ""}), "no current-context; known contexts: lab"),
        (document(**{"current-context": "x"}), "no context 'x'; known: lab"),
        (document(clusters=[]), "contexts[0].cluster: no cluster 'c'; known: none"),
        (document(clusters={}), "clusters: expected a list, found dict"),
        (document(users=[{"user": {}}]), "users[0]: expected a mapping with a name and a user"),
        (cluster(server="h:1"), "clusters[0].server: 'h:1' is no http or https URL"),
        (cluster(**{"certificate-authority": "nowhere"}), "nowhere: No such file or directory"),
        (cluster(**{"certificate-authority-data": "!"}), "certificate-authority-data: not base64"),
        (cluster(**{"proxy-url": "http://p"}), "proxy-url: not supported"),
        (user(token=7), "users[0].token: expected text, found int"),
        (user(**{"client-key-data": "QQ=="}), "client-certificate and client-key come together"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_place(tmp_path: Path, text: Any, says: str) -> None:
    path = write(tmp_path / "config", text)
    with pytest.raises(ConfigError) as caught:
        kubeconfig.load(path)
    assert says in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent: No such file"):
        kubeconfig.load(tmp_path / "absent")
