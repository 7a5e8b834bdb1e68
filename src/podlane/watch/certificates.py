"""What a certificate says of itself (RFC 5280): whose it is and when it holds. Only to explain errors.

OpenSSL judges certificates; this reads three fields, so that an error can name the one at fault. It needs no
library: the agent would carry it all its life for a sentence it may never say.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_COMMON_NAME: Final = bytes.fromhex("550403")  # OID 2.5.4.3
_SEQUENCE, _SET, _OID, _UTC_TIME, _EXPLICIT_0 = 0x30, 0x31, 0x06, 0x17, 0xA0


class Certificate(NamedTuple):
    """subject: its common name, "" if it has none."""

    subject: str
    begins: datetime
    ends: datetime

    def fault(self, now: datetime) -> str:
        """Why it does not hold at `now`, as words that follow its name; "" if it does."""
        if now > self.ends:
            return f"expired at {_stamp(self.ends)}"
        if now < self.begins:
            return f"does not hold before {_stamp(self.begins)}, and here it is {_stamp(now)}"
        return ""


def read(pem: bytes) -> list[Certificate]:
    """Those in pem, in their order. What is no certificate is left out."""
    found = []
    for match in _PEM.finditer(pem):
        try:
            found.append(_certificate(base64.b64decode(b"".join(match[1].split()))))
        except (ValueError, IndexError, binascii.Error):
            continue
    return found


def _stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S UTC")


def _certificate(der: bytes) -> Certificate:
    """Certificate: { tbsCertificate: { [0] version, serial, signature, issuer, validity, subject, ... } }"""
    fields = [f for f in _members(_only(_only(der))) if f[0] != _EXPLICIT_0]
    validity, subject = fields[3][1], fields[4][1]
    begins, ends = (_time(*f) for f in _members(validity))
    return Certificate(_common_name(subject), begins, ends)


def _common_name(name: bytes) -> str:
    for _, relative in _members(name):
        for _, attribute in _members(relative):
            (_, oid), (_, value) = _members(attribute)
            if oid == _COMMON_NAME:
                return value.decode("utf-8", "replace")
    return ""


def _time(tag: int, value: bytes) -> datetime:
    """UTCTime has two digits of the year: below 50 it is of this century (RFC 5280, section 4.1.2.5)."""
    text = value.decode("ascii").rstrip("Z")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < 50 else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%S").replace(tzinfo=UTC)


def _only(der: bytes) -> bytes:
    for _, content in _members(der):
        return content
    raise IndexError("nothing in it")


def _members(der: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of DER values that follow each other. Raises IndexError where they break off."""
    at = 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size & 0x80:
            octets = size & 0x7F
            size, at = int.from_bytes(der[at : at + octets], "big"), at + octets
        if at + size > len(der):
            raise IndexError("a value that is longer than what holds it")
        yield tag, der[at : at + size]
        at += size
