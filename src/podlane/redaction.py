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

# Parts of names; where a `-` stands there may be one, or `_` or `.`, or nothing.
_NAMES: Final = (
    "pass-word",
    "pass-wd",
    "pass-phrase",
    "secret",
    "token",
    "private-key",
    "pre-shared-key",
    "psk",
    "api-key",
    "access-key",
    "authorization",
    "credential",
    "client-key",
    "client-certificate-data",
    "certificate-authority-data",
)
# Names that have such a part and hold no secret.
_HARMLESS: Final = frozenset(
    {"tokenfile", "secretname", "secretref", "secretkeyref", "serviceaccounttoken"}
    | {"automountserviceaccounttoken", "certificateauthority"}
)

_PLAIN_NAMES: Final = tuple(name.replace("-", "") for name in _NAMES)
_PART: Final = "|".join(name.replace("-", "[-_.]?") for name in _NAMES)
# Of bounded length, and from its beginning on: a long line without a gap is gone through once.
_WORD: Final = rf"(?P<word>[A-Za-z0-9_.-]{{0,60}}?(?i:{_PART})[A-Za-z0-9_.-]{{0,60}})"
_VALUE: Final = (
    r"""(?P<value>[|>][-+]?\d?[ \t]*\n(?:[ \t]+[^\n]*(?:\n|\Z))+"""  # a block of YAML
    r"""|"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;}\]"']+)"""
)
_BY_NAME: Final = re.compile(
    rf"""(?<![A-Za-z0-9_.-])(?P<name>(?P<quote>["']?){_WORD}(?P=quote)"""
    rf"""(?:[ \t]{{0,64}}[:=][ \t]{{0,64}}|[ \t]{{1,64}}(?=["']))){_VALUE}"""
)
_FLAG: Final = re.compile(rf"(?<![A-Za-z0-9_.-])(?P<name>--{_WORD}[ =])(?P<value>\S+)")
_PEM: Final = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_PEM_END: Final = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")
_PEM_LINE: Final = re.compile(r"[A-Za-z0-9+/=]{1,76}\r?")
_BEARER: Final = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_JWT: Final = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")
_URL: Final = re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://)[^/\s:@]*:[^/\s@]+@")
_WORTH_A_LOOK: Final = re.compile(
    r"(?i)pass|secret|token|psk|key|authoriz|credential|client|authority|bearer|basic|eyJ|://|-----BEGIN|-----END"
)
_NOTHING: Final = ("", None, False, True, "null", "~", "true", "false", REMOVED)
_LEAST: Final = 6


def is_secret(name: str) -> bool:
    """Whether what has this name is not to be shown."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return plain not in _HARMLESS and any(part in plain for part in _PLAIN_NAMES)


def text(found: str, known: Iterable[str] = ()) -> str:
    """known: secrets themselves; each is taken out wherever it stands. Short ones are none."""
    for secret in known:
        if len(secret) >= _LEAST:
            found = found.replace(secret, REMOVED)
    if not _WORTH_A_LOOK.search(found):
        return found
    found = _without_rests(_PEM.sub(REMOVED, found))
    found = _URL.sub(rf"\1{REMOVED}@", found)
    found = _BEARER.sub(rf"\1 {REMOVED}", found)
    found = _JWT.sub(REMOVED, found)
    return _FLAG.sub(_without_value, _BY_NAME.sub(_without_value, found))


def _without_rests(found: str) -> str:
    """Without the last lines of PEM keys whose beginning is not there: a log may begin within one."""
    parts, at = [], 0
    for end in _PEM_END.finditer(found):
        lines = found[at : end.start()].rstrip("\n").split("\n")
        while lines and _PEM_LINE.fullmatch(lines[-1]):
            lines.pop()
        parts.append("\n".join([*lines, REMOVED]))
        at = end.end()
    return "".join([*parts, found[at:]])


def _without_value(found: re.Match[str]) -> str:
    value = found["value"]
    if value.strip("\"'") in _NOTHING:
        return found[0]
    if not is_secret(found["word"]):
        return found["name"] + text(value)
    if value[0] in "|>":
        end = "\n" if value.endswith("\n") else ""
        return f"{found['name']}{REMOVED}{end}"
    quote = value[0] if value[0] in "\"'" else ""
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
