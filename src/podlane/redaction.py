"""Taking secrets out of what people see: logs, bug reports. Pure.

Two nets. By name: what stands behind a word like `password`, `token` or `private_key`, in YAML, JSON, an ini
file, BIRD's configuration or a command line; and what looks like a secret by itself (a PEM key, a bearer
token, a JSON web token, credentials in a URL). By value: secrets that are known, having been read where they
are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

REMOVED: Final = "(removed)"

# Parts of names; compared without case, '-' and '_'.
_NAMES: Final = (
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "privatekey",
    "presharedkey",
    "psk",
    "apikey",
    "accesskey",
    "authorization",
    "credential",
    "clientkey",
    "clientkeydata",
    "clientcertificatedata",
    "certificateauthoritydata",
)
# Names that have such a part and hold no secret.
_HARMLESS: Final = frozenset(
    {
        "tokenfile",
        "secretname",
        "secretref",
        "secretkeyref",
        "serviceaccounttoken",
        "automountserviceaccounttoken",
    }
)

_BY_NAME: Final = re.compile(
    r"""(?P<name>(?P<quote>["']?)(?P<word>[A-Za-z][A-Za-z0-9_.-]*)(?P=quote)   # a word, quoted or not,
        (?:\s*[:=]\s*|\s+(?=["'])))                                            # and what leads to its value
        (?P<value>"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;}\]"']+)""",
    re.VERBOSE,
)
_FLAG: Final = re.compile(r"(?P<name>--(?P<word>[a-z][a-z0-9-]*)[\s=])(?P<value>\S+)")
_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_BEARER: Final = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_JWT: Final = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
_URL: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+@")
_WORTH_A_LOOK: Final = re.compile(
    r"(?i)pass|secret|token|psk|key|authoriz|credential|client|authority|bearer|basic|eyJ|://|-----BEGIN"
)
_NOTHING: Final = ("", None, False, True, "null", "~", "true", "false", REMOVED)
_LEAST: Final = 6


def is_secret(name: str) -> bool:
    """Whether what has this name is not to be shown."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return plain not in _HARMLESS and any(part in plain for part in _NAMES)


def text(found: str, known: Iterable[str] = ()) -> str:
    """known: secrets themselves; each is taken out wherever it stands. Short ones are none."""
    for secret in known:
        if len(secret) >= _LEAST:
            found = found.replace(secret, REMOVED)
    if not _WORTH_A_LOOK.search(found):
        return found
    found = _PEM.sub(REMOVED, found)
    found = _URL.sub(rf"\1{REMOVED}@", found)
    found = _BEARER.sub(rf"\1 {REMOVED}", found)
    found = _JWT.sub(REMOVED, found)
    return _FLAG.sub(_without_value, _BY_NAME.sub(_without_value, found))


def _without_value(found: re.Match[str]) -> str:
    if not is_secret(found["word"]) or found["value"].strip("\"'") in _NOTHING:
        return found[0]
    quote = found["value"][0] if found["value"][0] in "\"'" else ""
    return f"{found['name']}{quote}{REMOVED}{quote}"


def value(found: Any, known: Iterable[str] = ()) -> Any:
    """The same of what JSON has: mappings, lists, texts. Returns a copy."""
    if isinstance(found, Mapping):
        return {
            key: REMOVED if is_secret(str(key)) and each not in _NOTHING else value(each, known)
            for key, each in found.items()
        }
    if isinstance(found, (list, tuple)):
        return [value(each, known) for each in found]
    return text(found, known) if isinstance(found, str) else found
