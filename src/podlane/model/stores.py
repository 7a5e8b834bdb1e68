"""Where a lab's API keeps its objects: the key `store` of NetworkConfig.

sqlite                                    a file of the lab's own
etcd://local[?members=3]                  etcd members of the lab's own, 1, 3 or 5
etcd://HOST[:PORT],...[/PREFIX]           etcd members that are there; all keys begin with /PREFIX/
etcds://HOST[:PORT],...[/PREFIX]?ca=FILE[&cert=FILE&key=FILE]     with TLS
"""

from __future__ import annotations

import enum
import re
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct

from podlane.errors import ConfigError

CLIENT_PORT = 2379
MEMBERS = (1, 3, 5)
_FILES = ("ca", "cert", "key")
_EXAMPLE = "write sqlite, etcd://local?members=3, etcd://HOST:2379,HOST:2379/PREFIX or etcds://HOST?ca=FILE"


class StoreKind(enum.StrEnum):
    SQLITE = "sqlite"
    LOCAL = "local"
    ETCD = "etcd"


class StoreAddress(Struct, frozen=True, kw_only=True):
    """endpoints: (host, port). prefix: of all keys, as /podlane/lab; "": the reader's own choice.

    members: of kind LOCAL. ca, cert, key: files, of an address with TLS.
    """

    kind: StoreKind
    endpoints: tuple[tuple[str, int], ...] = ()
    prefix: str = ""
    members: int = 1
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""

    @property
    def shown(self) -> str:
        return ", ".join(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.endpoints
        )


def parse(text: str) -> StoreAddress:
    """Raises ConfigError saying what is wrong and what would work."""
    if text == StoreKind.SQLITE:
        return StoreAddress(kind=StoreKind.SQLITE)
    parts = urlsplit(text)
    if parts.scheme not in ("etcd", "etcds") or not parts.netloc:
        raise ConfigError(f"{text!r} is no store; {_EXAMPLE}")
    if "@" in parts.netloc:
        raise ConfigError("no user and password are taken; use etcds:// with a client certificate")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.netloc == StoreKind.LOCAL and parts.scheme == "etcd":
        return _local(parts.path, options)
    endpoints = tuple(_endpoint(each) for each in parts.netloc.split(","))
    tls = parts.scheme == "etcds"
    unknown = sorted(set(options) - set(_FILES if tls else ()))
    if unknown:
        known = ", ".join(_FILES) if tls else "none but with etcds:// or etcd://local"
        raise ConfigError(f"unknown option {unknown[0]!r}; known here: {known}")
    for name, file in options.items():
        if not file.startswith("/"):
            raise ConfigError(f"{name}={file}: write the file's whole path")
    if bool(options.get("cert")) != bool(options.get("key")):
        raise ConfigError("cert and key go together")
    path = parts.path.rstrip("/")
    if path and not re.fullmatch(r"(/[-.\w]+)+", path, re.ASCII):
        raise ConfigError(f"prefix {path!r}: letters, digits, '-', '_', '.' between slashes, as /podlane/lab")
    return StoreAddress(
        kind=StoreKind.ETCD,
        endpoints=endpoints,
        prefix=path,
        tls=tls,
        ca=options.get("ca", ""),
        cert=options.get("cert", ""),
        key=options.get("key", ""),
    )


def _local(path: str, options: dict[str, str]) -> StoreAddress:
    members = options.pop("members", "1")
    if options or path.strip("/"):
        raise ConfigError("etcd://local takes nothing but ?members=1, 3 or 5")
    if members not in map(str, MEMBERS):
        raise ConfigError(f"members={members}: 1, 3 or 5; an even number survives no more than one less")
    return StoreAddress(kind=StoreKind.LOCAL, members=int(members))


def _endpoint(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([-.\w]+))(?::(\d{1,5}))?", text, re.ASCII)
    port = int(found[3] or CLIENT_PORT) if found else 0
    if found is None or not 0 < port < 1 << 16:
        raise ConfigError(f"endpoint {text!r}: write HOST or HOST:PORT, an IPv6 address in brackets")
    return found[1] or found[2], port
