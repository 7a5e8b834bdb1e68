"""Forms of names, labels, ports and addresses, with the words of k8s.io/apimachinery pkg/util/validation.

Each check answers what is wrong with a value, nothing when it is right. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from podlane.errors import ConfigError
from podlane.model.addresses import Address, Prefix, address, family_of

Check = Callable[[str], Iterator[str]]

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_1035 = r"[a-z]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NAME_PART = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = rf"({_NAME_PART})?"
_KEY = r"[-._a-zA-Z0-9]+"

_label_re, _label_1035_re, _subdomain_re = map(re.compile, (_LABEL, _LABEL_1035, _SUBDOMAIN))
_name_part_re, _value_re, _key_re = map(re.compile, (_NAME_PART, _VALUE, _KEY))


def _regex_error(message: str, pattern: str, *examples: str) -> str:
    listed = ",  or ".join(f"'{e}'" for e in examples)
    return f"{message} (e.g. {listed}, regex used for validation is '{pattern}')"


def _length(value: str, limit: int) -> Iterator[str]:
    if len(value.encode()) > limit:
        yield f"must be no more than {limit} bytes"


_LABEL_ERROR = _regex_error(
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', "
    "and must start and end with an alphanumeric character",
    _LABEL,
    "my-name",
    "123-abc",
)
_LABEL_1035_ERROR = _regex_error(
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', "
    "start with an alphabetic character, and end with an alphanumeric character",
    _LABEL_1035,
    "my-name",
    "abc-123",
)
_SUBDOMAIN_ERROR = _regex_error(
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', "
    "and must start and end with an alphanumeric character",
    _SUBDOMAIN,
    "example.com",
)
_NAME_PART_ERROR = _regex_error(
    "must consist of alphanumeric characters, '-', '_' or '.', "
    "and must start and end with an alphanumeric character",
    _NAME_PART,
    "MyName",
    "my.name",
    "123-abc",
)
_VALUE_ERROR = _regex_error(
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
    "and must start and end with an alphanumeric character",
    _VALUE,
    "MyValue",
    "my_value",
    "12345",
)
_KEY_ERROR = _regex_error(
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
    _KEY,
    "key.name",
    "KEY_NAME",
    "key-name",
)


def dns_label(value: str) -> Iterator[str]:
    """RFC 1123."""
    yield from _length(value, 63)
    if not _label_re.fullmatch(value):
        yield _LABEL_ERROR


def dns_label_1035(value: str) -> Iterator[str]:
    yield from _length(value, 63)
    if not _label_1035_re.fullmatch(value):
        yield _LABEL_1035_ERROR


def dns_subdomain(value: str) -> Iterator[str]:
    """RFC 1123: what most objects' names are."""
    yield from _length(value, 253)
    if not _subdomain_re.fullmatch(value):
        yield _SUBDOMAIN_ERROR


def wildcard_domain(value: str) -> Iterator[str]:
    """*.example.com"""
    yield from _length(value, 253)
    if not value.startswith("*.") or not _subdomain_re.fullmatch(value[2:]):
        yield _regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, "
            "which must consist of lower case alphanumeric characters, '-' or '.' and end with an "
            "alphanumeric character",
            rf"\*\.{_SUBDOMAIN}",
            "*.example.com",
        )


def qualified_name(value: str) -> Iterator[str]:
    """Keys of labels and annotations: an optional DNS subdomain and "/", then a name."""
    prefix, slash, name = value.rpartition("/")
    if "/" in prefix:
        yield f"a qualified name {_NAME_PART_ERROR} with an optional DNS subdomain prefix and '/' (e.g. " + (
            "'example.com/MyName')"
        )
        return
    if slash and not prefix:
        yield "prefix part must be non-empty"
    elif slash:
        yield from (f"prefix part {why}" for why in dns_subdomain(prefix))
    if not name:
        yield "name part must be non-empty"
    elif len(name.encode()) > 63:
        yield "name part must be no more than 63 bytes"
    if not _name_part_re.fullmatch(name):
        yield f"name part {_NAME_PART_ERROR}"


def label_value(value: str) -> Iterator[str]:
    yield from _length(value, 63)
    if not _value_re.fullmatch(value):
        yield _VALUE_ERROR


def config_key(value: str) -> Iterator[str]:
    """Keys of ConfigMaps and Secrets: they become file names."""
    yield from _length(value, 253)
    if not _key_re.fullmatch(value):
        yield _KEY_ERROR
    elif value == ".":
        yield "must not be '.'"
    elif value == "..":
        yield "must not be '..'"
    elif value.startswith(".."):
        yield "must not start with '..'"


def port_name(value: str) -> Iterator[str]:
    """IANA_SVC_NAME, RFC 6335 section 5.1."""
    if len(value) > 15:
        yield "must be no more than 15 characters"
    if not re.fullmatch(r"[-a-z0-9]+", value):
        yield "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
    if not re.search(r"[a-z]", value):
        yield "must contain at least one letter (a-z)"
    if "--" in value:
        yield "must not contain consecutive hyphens"
    if value[:1] == "-" or value[-1:] == "-":
        yield "must not begin or end with a hyphen"


def env_name(value: str) -> Iterator[str]:
    if not value or not all(" " <= c <= "~" and c != "=" for c in value):
        yield (
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
        )


def path_segment(value: str) -> Iterator[str]:
    """Names of RBAC objects."""
    if value in (".", ".."):
        yield f"may not be '{value}'"
    for illegal in "/%":
        if illegal in value:
            yield f"may not contain '{illegal}'"


def header_name(value: str) -> Iterator[str]:
    if not re.fullmatch(r"[-A-Za-z0-9]+", value):
        yield _regex_error(
            "a valid HTTP header must consist of alphanumeric characters or '-'",
            "[-A-Za-z0-9]+",
            "X-Header-Name",
        )


# --- addresses ------------------------------------------------------------------------------------


def parsed(value: str) -> Address | None:
    """An address in any form, leading zeros among them."""
    try:
        return address(value)
    except ConfigError:
        return None


def ip(value: str) -> Iterator[str]:
    """StrictIPCIDRValidation: new values have no leading zeros."""
    found = parsed(value)
    if found is None or "%" in value:
        yield "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    elif found.version == 4 and str(found) != value:
        yield "must not have leading 0s"
    elif found.version == 6 and found.ipv4_mapped is not None:
        yield "must not be an IPv4-mapped IPv6 address"


def canonical_ip(value: str) -> Iterator[str]:
    wrong = list(ip(value))
    yield from wrong
    found = parsed(value)
    if not wrong and found is not None and str(found) != value:
        yield f'must be in canonical form ("{found}")'


def network(value: str) -> Prefix | None:
    """A prefix, whether or not bits beyond it are set."""
    try:
        return ipaddress.ip_network(value, strict=False) if "/" in value else None
    except ValueError:
        return None


def cidr(value: str) -> Iterator[str]:
    found = network(value)
    if found is None or not value.rpartition("/")[2].isdigit():
        yield "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
        return
    at = parsed(value.partition("/")[0])
    if at is not None and at != found.network_address:
        yield "must not have bits set beyond the prefix length"


def usable_ip(value: str) -> Iterator[str]:
    """An address traffic can be sent to: endpoints, external IPs (ValidateNonSpecialIP)."""
    found = parsed(value)
    if found is None:
        yield from ip(value)
        return
    zero = "0.0.0.0" if found.version == 4 else "::"
    loop = "127.0.0.0/8, ::1/128"
    for wrong, text in (
        (found.is_unspecified, f"may not be unspecified ({zero})"),
        (found.is_loopback, f"may not be in the loopback range ({loop})"),
        (found.is_link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (
            found.is_multicast and _link_local_multicast(found),
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ):
        if wrong:
            yield text


def _link_local_multicast(value: Address) -> bool:
    blocks = {"IPv4": "224.0.0.0/24", "IPv6": "ff02::/16"}
    return value in ipaddress.ip_network(blocks[family_of(value).value])
