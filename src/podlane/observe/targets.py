"""Who sends and who is sent to, as people write it on the command line. Pure.

    pod/NAME   NS/pod/NAME   svc/NAME   NS/svc/NAME   node/NAME   outside   ADDRESS

A destination may say a port and a protocol after it: `svc/web:80`, `svc/web:http`, `pod/dns:53/udp`,
`10.96.0.10:53/udp`, `[fd00:10:96::a]:53`. kubectl's other words for the kinds (po, pods, service, no ...)
are understood as well.
"""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable
from typing import Final

from msgspec import Struct

from podlane.errors import ConfigError, UsageError
from podlane.model.addresses import Address, Protocol, address


class TargetKind(enum.StrEnum):
    """The value is what stands before the name."""

    POD = "pod"
    SERVICE = "svc"
    NODE = "node"
    OUTSIDE = "outside"
    ADDRESS = "address"


_KINDS: Final = {
    **dict.fromkeys(("pod", "pods", "po"), TargetKind.POD),
    **dict.fromkeys(("svc", "service", "services"), TargetKind.SERVICE),
    **dict.fromkeys(("node", "nodes", "no"), TargetKind.NODE),
}
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_FORMS: Final = "pod/NAME, NS/pod/NAME, svc/NAME, NS/svc/NAME, node/NAME, outside, or an address"


class Target(Struct, frozen=True):
    """namespace: of a pod or service. address: of kind ADDRESS. port: a number or a port's name, None when
    not said; protocol: None when not said."""

    kind: TargetKind
    name: str = ""
    namespace: str = ""
    address: Address | None = None
    port: int | str | None = None
    protocol: Protocol | None = None

    def __str__(self) -> str:
        match self.kind:
            case TargetKind.OUTSIDE:
                return "outside"
            case TargetKind.ADDRESS:
                return str(self.address)
            case TargetKind.NODE:
                return f"node/{self.name}"
        return f"{self.namespace}/{self.kind}/{self.name}"


def parse_source(text: str, namespace: str = "default") -> Target:
    """Raises UsageError saying what would work; a service sends nothing, and a source has no port."""
    target = _parse(text, namespace, "source")
    if target.kind is TargetKind.SERVICE:
        raise UsageError(f"source {text!r}: a service sends nothing; name one of its pods, as pod/NAME")
    if target.port is not None or target.protocol is not None:
        raise UsageError(
            f"source {text!r}: the port and protocol belong to the destination: write {target} here"
        )
    return target


def parse_destination(text: str, namespace: str = "default") -> Target:
    """Raises UsageError saying what would work."""
    return _parse(text, namespace, "destination")


def _parse(text: str, namespace: str, role: str) -> Target:
    body, protocol = text.strip(), None
    head, slash, tail = body.rpartition("/")
    # `pod/tcp` is a pod of that name: what stands before a protocol names something by itself.
    if slash and tail.upper() in Protocol.__members__ and head.rpartition("/")[2].lower() not in _KINDS:
        body, protocol = head, Protocol[tail.upper()]
    where, port = _split_port(body, text, role)
    if where == "outside":
        target = Target(TargetKind.OUTSIDE)
    elif "/" in where:
        target = _named(where, namespace, text, role)
    else:
        target = _address(where, text, role)
    return Target(target.kind, target.name, target.namespace, target.address, port, protocol)


def _split_port(body: str, text: str, role: str) -> tuple[str, int | str | None]:
    """`x:80` apart; a bare IPv6 address keeps its colons, `[x]:80` loses the brackets."""
    if body.startswith("["):
        inside, bracket, rest = body[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{role} {text!r}: write an IPv6 address with a port as [ADDRESS]:PORT")
        return inside, _port(rest[1:], text, role) if rest else None
    if body.count(":") > 1 and "/" not in body:
        return body, None
    where, colon, port = body.rpartition(":")
    return (where, _port(port, text, role)) if colon else (body, None)


def _port(port: str, text: str, role: str) -> int | str:
    if re.fullmatch(r"[0-9]+", port, re.ASCII):
        if len(port) <= 5 and 1 <= int(port) <= 65535:
            return int(port)
        raise UsageError(f"{role} {text!r}: port {port} is not between 1 and 65535")
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?", port):
        return port
    raise UsageError(f"{role} {text!r}: {port!r} is no port; write a number or the name of a port")


def _named(where: str, namespace: str, text: str, role: str) -> Target:
    parts = where.split("/")
    kind = _KINDS.get(parts[-2].lower())
    if kind is None:
        near = close(parts[-2], _KINDS)
        hint = f" (did you mean {_KINDS[near]}/{parts[-1]}?)" if near else ""
        raise UsageError(f"{role} {text!r}: no kind {parts[-2]!r} can be named here{hint}; write {_FORMS}")
    if len(parts) > 3 or (kind is TargetKind.NODE and len(parts) > 2):
        raise UsageError(f"{role} {text!r}: too many '/'; write {_FORMS}")
    name = parts[-1]
    if len(parts) == 3:
        namespace = parts[0]
    for what, value in (("name", name), ("namespace", namespace)):
        if not _NAME.fullmatch(value):
            raise UsageError(
                f"{role} {text!r}: {value!r} is no {what} of a Kubernetes object; write {_FORMS}"
            )
    return Target(kind, name, "" if kind is TargetKind.NODE else namespace)


def _address(where: str, text: str, role: str) -> Target:
    try:
        found = address(where)
    except ConfigError:
        hint = f" (did you mean pod/{where} or svc/{where}?)" if _NAME.fullmatch(where) else ""
        raise UsageError(f"{role} {text!r} is neither a name nor an address{hint}; write {_FORMS}") from None
    if found.is_loopback or found.is_unspecified or found.is_multicast:
        raise UsageError(
            f"{role} {text!r}: no packet of one host's to another has {found} there; write {_FORMS}"
        )
    return Target(TargetKind.ADDRESS, address=found)


def close(name: str, known: Iterable[str]) -> str:
    """The known name most like `name`, or ""."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else ""
