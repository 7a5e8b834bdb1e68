"""Credentials that a program gives out (Kubernetes: "client-go credential plugins").

    kubeconfig users[].user.exec ──> run: environment KUBERNETES_EXEC_INFO ──> stdout: an ExecCredential
    status: token, or clientCertificateData with clientKeyData; good until expirationTimestamp

client.authentication.k8s.io/v1 and v1beta1. An agent has no terminal: a program that needs one is refused.
"""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from podlane.errors import ConfigError

GROUP: Final = "client.authentication.k8s.io"
VERSIONS: Final = (f"{GROUP}/v1", f"{GROUP}/v1beta1")
TIMEOUT_S: Final = 60.0
INTERACTIVE: Final = ("Never", "IfAvailable", "Always")


class ExecPlugin(Struct, frozen=True):
    """directory: of the kubeconfig, for a command with a relative path. cluster: for provideClusterInfo."""

    where: str
    command: str
    directory: str
    api_version: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    install_hint: str = ""
    cluster: dict[str, Any] | None = None


class Credential(Struct, frozen=True):
    """expires_s: since 1970, 0 for never."""

    token: str = ""
    client_cert_pem: bytes | None = None
    client_key_pem: bytes | None = None
    expires_s: float = 0.0


class _Status(Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: datetime | None = None


class _ExecCredential(Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    status: _Status | None = None


def parse(body: Any, where: str, directory: Path, cluster: Mapping[str, Any]) -> ExecPlugin:
    """body: users[].user.exec. cluster: clusters[].cluster, with its CA as data. Raises ConfigError."""
    if not isinstance(body, dict):
        raise ConfigError(f"{where}: expected a mapping, found {type(body).__name__}")
    version, command = body.get("apiVersion"), body.get("command")
    if version not in VERSIONS:
        raise ConfigError(f"{where}.apiVersion: {version!r}; known: {', '.join(VERSIONS)}")
    if not isinstance(command, str) or not command:
        raise ConfigError(f"{where}.command: expected the name of a program")
    mode = body.get("interactiveMode") or ("" if version == VERSIONS[0] else "IfAvailable")
    if mode not in INTERACTIVE:
        raise ConfigError(f"{where}.interactiveMode: {mode!r}; known: {', '.join(INTERACTIVE)}")
    if mode == "Always":
        raise ConfigError(
            f"{where}.interactiveMode: Always: {command} wants a terminal and a daemon has none; use a "
            "service account's tokenFile or a client certificate"
        )
    try:
        args = msgspec.convert(body.get("args") or [], tuple[str, ...])
        pairs = msgspec.convert(body.get("env") or [], list[dict[str, str]])
        env = tuple((pair["name"], pair.get("value", "")) for pair in pairs)
    except (msgspec.ValidationError, KeyError) as error:
        raise ConfigError(f"{where}: args are texts, env pairs of name and value: {error}") from None
    shown = dict(cluster) if body.get("provideClusterInfo") else None
    hint = str(body.get("installHint") or "")
    return ExecPlugin(where, command, str(directory), version, args, env, hint, shown)


def run(plugin: ExecPlugin) -> Credential:
    """Blocks, for a minute at most. Raises ConfigError: what, where, what would work."""
    program = _program(plugin)
    spec: dict[str, Any] = {"interactive": False}
    if plugin.cluster is not None:
        spec["cluster"] = plugin.cluster
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    environ = {**os.environ, **dict(plugin.env), "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
    try:
        done = subprocess.run(
            [program, *plugin.args],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except OSError as error:
        raise ConfigError(f"{plugin.where}: {program}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{plugin.where}: {program} did not end within {TIMEOUT_S:g} s") from None
    if done.returncode:
        said = done.stderr[-500:].decode("utf-8", "replace").strip()
        raise ConfigError(f"{plugin.where}: {program} ended with status {done.returncode}: {said}")
    return decode(plugin, done.stdout)


def decode(plugin: ExecPlugin, output: bytes) -> Credential:
    """What the program printed. Raises ConfigError; the output itself is a secret and is not shown."""
    where = f"{plugin.where}: what {plugin.command} printed"
    try:
        answer = msgspec.json.decode(output, type=_ExecCredential)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where} is no ExecCredential: {error}") from None
    if (answer.api_version, answer.kind) != (plugin.api_version, "ExecCredential"):
        found = f"{answer.kind or 'nothing'} of {answer.api_version or 'no apiVersion'}"
        raise ConfigError(f"{where} is {found}, expected ExecCredential of {plugin.api_version}")
    status = answer.status or _Status()
    if bool(status.client_certificate_data) != bool(status.client_key_data):
        raise ConfigError(f"{where} has one of clientCertificateData and clientKeyData; they come together")
    if not (status.token or status.client_certificate_data):
        raise ConfigError(f"{where} has no token and no client certificate in its status")
    until = status.expiration_timestamp
    expires_s = (until if until is None or until.tzinfo else until.replace(tzinfo=UTC)) if until else None
    return Credential(
        status.token,
        status.client_certificate_data.encode() or None,
        status.client_key_data.encode() or None,
        expires_s.timestamp() if expires_s else 0.0,
    )


def cluster_info(cluster: Mapping[str, Any], ca_pem: bytes | None) -> dict[str, Any]:
    """Of clusters[].cluster what a plugin is shown, with the CA as data and `config` of the extension."""
    known = ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url", "disable-compression")
    found = {key: cluster[key] for key in known if key in cluster}
    if ca_pem is not None:
        found["certificate-authority-data"] = base64.b64encode(ca_pem).decode()
    for each in cluster.get("extensions") or ():
        if isinstance(each, dict) and each.get("name") == f"{GROUP}/exec":
            found["config"] = each.get("extension")
    return found


def _program(plugin: ExecPlugin) -> str:
    """A command with a slash is relative to the kubeconfig; another is looked for on the PATH."""
    import shutil  # large, and most agents run no plugin

    if os.sep in plugin.command:
        found: str | None = str(Path(plugin.directory) / plugin.command)
        if not os.access(found or "", os.X_OK):
            found = None
    else:
        found = shutil.which(plugin.command)
    if found is None:
        hint = f": {plugin.install_hint}" if plugin.install_hint else "; install it or use a tokenFile"
        raise ConfigError(f"{plugin.where}: the program {plugin.command} is not there{hint}")
    return found
