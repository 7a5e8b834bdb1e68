"""How to reach the API: kubeconfig files, or the service account of the pod one runs in.

Follows client-go: KUBECONFIG names several files, of which the first that has a cluster, user, context
or current-context wins; relative paths are relative to the file that says them; `*-data` wins over the
path beside it. Exec plugins and auth providers are refused by name: podlane runs no foreign programs
to log in (use a token file or a client certificate).
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from podlane.errors import ConfigError
from podlane.watch import exec_plugin
from podlane.watch.exec_plugin import ExecPlugin

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Access(Struct, frozen=True):
    """Everything a client needs.

    server: URL without a trailing slash; servers: several that are as good as each other, () for that one;
    ca_pem: trust anchors, None for the system's; client_cert_pem with client_key_pem: for TLS client
    authentication; ca_file, client_cert_file, client_key_file: where those came from, "" if they were in
    the kubeconfig: like token_file they are read again as they rotate; server_name: name to expect in the
    server's certificate instead of the URL's host; exec: a program that gives credentials out; namespace:
    the context's.
    """

    server: str
    ca_pem: bytes | None = None
    insecure: bool = False
    server_name: str = ""
    token: str = ""
    token_file: str = ""
    client_cert_pem: bytes | None = None
    client_key_pem: bytes | None = None
    username: str = ""
    password: str = ""
    namespace: str = "default"
    servers: tuple[str, ...] = ()
    ca_file: str = ""
    client_cert_file: str = ""
    client_key_file: str = ""
    exec: ExecPlugin | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        return self.servers or (self.server,)


def load(path: str | Path | None = None, context: str = "", servers: Sequence[str] = ()) -> Access:
    """path: one file; None: KUBECONFIG, then the service account of this pod, then ~/.kube/config.

    servers: URLs instead of the one found there. Raises ConfigError naming the file and what is wrong in it.
    """
    found = _load(path, context)
    if not servers:
        return found
    urls = tuple(_url(each, "API server") for each in servers)
    return msgspec.structs.replace(found, server=urls[0], servers=urls)


def _load(path: str | Path | None, context: str) -> Access:
    if path is not None:
        return parse([Path(path)], context)
    if os.environ.get("KUBECONFIG"):
        return parse([Path(p) for p in os.environ["KUBECONFIG"].split(":") if p], context, missing_ok=True)
    if os.environ.get("KUBERNETES_SERVICE_HOST") and (SERVICE_ACCOUNT / "token").exists():
        return in_cluster(os.environ, SERVICE_ACCOUNT)
    return parse([Path.home() / ".kube" / "config"], context)


def in_cluster(environ: Mapping[str, str], account: Path) -> Access:
    """The API as a pod sees it, with its service account's projected token."""
    host, port = environ["KUBERNETES_SERVICE_HOST"], environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    namespace = account / "namespace"
    return Access(
        server=f"https://{host}:{port}",
        ca_pem=_read(account / "ca.crt", "service account"),
        ca_file=str(account / "ca.crt"),
        token_file=str(account / "token"),
        namespace=namespace.read_text().strip() if namespace.exists() else "default",
    )


def parse(paths: list[Path], context: str = "", *, missing_ok: bool = False) -> Access:
    """Several files merged, as KUBECONFIG has them."""
    clusters: dict[str, _Entry] = {}
    users: dict[str, _Entry] = {}
    contexts: dict[str, _Entry] = {}
    current = ""
    found = False
    for path in paths:
        if missing_ok and not path.exists():
            continue
        found = True
        document = _document(path)
        for key, into in (("clusters", clusters), ("users", users), ("contexts", contexts)):
            for number, item in enumerate(_list(document.get(key), f"{path}: {key}")):
                where = f"{path}: {key}[{number}]"
                body = item.get(key[:-1]) if isinstance(item, dict) else None
                if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                    raise ConfigError(f"{where}: expected a mapping with a name and a {key[:-1]}")
                into.setdefault(item["name"], _Entry(_mapping(body, where), path, where))
        current = current or str(document.get("current-context") or "")
    if not found:
        raise ConfigError(f"no kubeconfig: none of {', '.join(map(str, paths))} exists")
    files = ", ".join(map(str, paths))
    name = context or current
    if not name:
        raise ConfigError(f"{files}: no current-context; known contexts: {_names(contexts)}")
    if name not in contexts:
        raise ConfigError(f"{files}: no context {name!r}; known: {_names(contexts)}")
    chosen = contexts[name]
    cluster = _named(clusters, chosen, "cluster")
    user = _named(users, chosen, "user") if chosen.body.get("user") else _Entry({}, cluster.path, "user")
    return _access(cluster, user, str(chosen.body.get("namespace") or "default"))


class _Entry(Struct, frozen=True):
    body: dict[str, Any]
    path: Path
    where: str

    def text(self, key: str) -> str:
        value = self.body.get(key)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{self.where}.{key}: expected text, found {type(value).__name__}")
        return value or ""

    def file(self, key: str) -> str:
        """The path at `key`, made absolute."""
        text = self.text(key)
        return str(self.path.parent / text) if text else ""

    def source(self, key: str) -> str:
        """The path at `key`, unless its data are in the kubeconfig itself."""
        return "" if self.text(f"{key}-data") else self.file(key)

    def content(self, key: str) -> bytes | None:
        """`key-data`, or what the file at `key` holds."""
        if data := self.text(f"{key}-data"):
            try:
                return base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise ConfigError(f"{self.where}.{key}-data: not base64: {error}") from None
        path = self.file(key)
        return _read(Path(path), f"{self.where}.{key}") if path else None


_REFUSED_OF_USER = {
    "auth-provider": "use a tokenFile, a client certificate or exec",
    "as": "give the user the rights it needs instead",
    "as-groups": "give the user the rights it needs instead",
    "as-uid": "give the user the rights it needs instead",
    "as-user-extra": "give the user the rights it needs instead",
}


def _access(cluster: _Entry, user: _Entry, namespace: str) -> Access:
    for key, instead in _REFUSED_OF_USER.items():
        if user.body.get(key):
            raise ConfigError(f"{user.where}.{key}: not supported; {instead}")
    if cluster.text("proxy-url"):
        raise ConfigError(f"{cluster.where}.proxy-url: not supported; give the API's own address")
    insecure, ca_pem = bool(cluster.body.get("insecure-skip-tls-verify")), cluster.content(_CA)
    if insecure and ca_pem is not None:
        raise ConfigError(f"{cluster.where}: {_CA} and insecure-skip-tls-verify contradict each other")
    certificate, key_pem = user.content("client-certificate"), user.content("client-key")
    if (certificate is None) != (key_pem is None):
        raise ConfigError(f"{user.where}: client-certificate and client-key come together")
    plugin = None
    if user.body.get("exec"):
        if certificate is not None or user.text("token") or user.text("tokenFile"):
            raise ConfigError(f"{user.where}: exec beside other credentials; leave one of them")
        about = exec_plugin.cluster_info(cluster.body, ca_pem)
        plugin = exec_plugin.parse(user.body["exec"], f"{user.where}.exec", user.path.parent, about)
    return Access(
        server=_url(cluster.text("server"), f"{cluster.where}.server"),
        ca_pem=ca_pem,
        ca_file=cluster.source(_CA),
        insecure=insecure,
        server_name=cluster.text("tls-server-name"),
        token=user.text("token"),
        # client-go: tokenFile, when given, wins over token
        token_file=user.file("tokenFile"),
        client_cert_pem=certificate,
        client_cert_file=user.source("client-certificate"),
        client_key_pem=key_pem,
        client_key_file=user.source("client-key"),
        username=user.text("username"),
        password=user.text("password"),
        namespace=namespace,
        exec=plugin,
    )


_CA = "certificate-authority"


def _url(text: str, where: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{where}: {text!r} is no http or https URL")
    return text.rstrip("/")


def _document(path: Path) -> dict[str, Any]:
    text = _read(path, "kubeconfig")
    try:
        # JSON is YAML too, and sparing the import of yaml spares memory.
        document = msgspec.json.decode(text) if text.lstrip()[:1] == b"{" else _yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not a kubeconfig: {' '.join(str(error).split())}") from None
    return _mapping(document, str(path))


def _yaml(text: bytes) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{what}: {path}: {error.strerror}") from None


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping, found {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise ConfigError(f"{where}: expected a list, found {type(value).__name__}")
    return value or []


def _named(entries: dict[str, _Entry], context: _Entry, kind: str) -> _Entry:
    name = context.text(kind)
    if name not in entries:
        raise ConfigError(f"{context.where}.{kind}: no {kind} {name!r}; known: {_names(entries)}")
    return entries[name]


def _names(entries: Mapping[str, object]) -> str:
    return ", ".join(sorted(entries)) or "none"
