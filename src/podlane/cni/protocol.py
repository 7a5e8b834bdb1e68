"""The plugin's side of the CNI specification 1.1: environment and configuration in, errors out (results.py).

Pure. The rules are those of libcni's skel package, as one table; unlike skel, all faults of a request are
reported together. Answers are given in the version the configuration asks for, 0.1.0 to 1.1.0.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from podlane.errors import CniError

VERSIONS: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST: Final = VERSIONS[-1]

# Error codes of the specification; from 100 on our own.
INCOMPATIBLE_VERSION, UNSUPPORTED_FIELD, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT = 1, 2, 3, 4
IO_FAILURE, UNDECODABLE, INVALID_CONFIG, TRY_AGAIN_LATER, NOT_AVAILABLE = 5, 6, 7, 11, 50
KERNEL_REFUSED, NOT_AS_MADE, INTERNAL = 100, 101, 999


class Verb(enum.StrEnum):
    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


# The configuration version from which a verb exists.
SINCE: Final = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}

# The shim names itself here; IPAM types are executed by other plugins, with those plugins' configuration.
EXECUTABLE: Final = "PODLANE_CNI_NAME"
IPAM_TYPES: Final = frozenset({"host-local", "static"})

_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


def _container_id_fault(value: str) -> str:
    return (
        "" if _IDENTIFIER.fullmatch(value) else "letters, digits, '_', '.', '-'; the first a letter or digit"
    )


def _ifname_fault(value: str) -> str:
    if len(value.encode()) > 15:
        return "more than 15 bytes"
    if value in (".", ".."):
        return "'.' and '..' are no interface names"
    return "contains '/', ':' or a space" if re.search(r"[/:\s]", value) else ""


def _any(_: str) -> str:
    return ""


class _Variable(Struct, frozen=True):
    """required: the verbs that cannot do without; fault: what is wrong with a value, "" if nothing."""

    name: str
    required: frozenset[Verb]
    fault: Callable[[str], str] = _any


_POD_VERBS = frozenset({Verb.ADD, Verb.CHECK, Verb.DEL})

ENVIRONMENT: Final = (
    _Variable("CNI_CONTAINERID", _POD_VERBS, _container_id_fault),
    _Variable("CNI_NETNS", frozenset({Verb.ADD, Verb.CHECK})),
    _Variable("CNI_IFNAME", _POD_VERBS, _ifname_fault),
    _Variable("CNI_PATH", frozenset(Verb) - {Verb.VERSION}),
)


class Request(Struct, frozen=True, kw_only=True):
    """version: of the configuration, in which the answer must be. args: CNI_ARGS.

    valid_attachments: (container id, ifname) of GC; None when the key is absent, which is not the same
    as an empty list. config: the whole configuration. executable: the name the runtime found us by.
    readings: what types have made of the configuration (plugins/base.py: read_once).
    """

    verb: Verb
    version: str
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    network: str = ""
    args: dict[str, str] = {}
    previous: dict[str, Any] | None = None
    valid_attachments: tuple[tuple[str, str], ...] | None = None
    config: dict[str, Any] = {}
    executable: str = ""
    readings: dict[Any, Any] = {}

    @property
    def kind(self) -> str:
        """The plugin type asked for: IPAM types are executed for configurations of another type."""
        return self.executable if self.executable in IPAM_TYPES else str(self.config.get("type", ""))

    def runtime(self, capability: str) -> Any:
        """What the runtime says for a capability (runtimeConfig); None for nothing."""
        return _object(self.config.get("runtimeConfig")).get(capability)

    def cni_args(self, key: str) -> Any:
        """args.cni of the configuration; None for nothing."""
        return _object(_object(self.config.get("args")).get("cni")).get(key)


def parse(
    environment: Mapping[str, str],
    stdin: bytes,
    faults_of: Callable[[Request], list[str]] = lambda _: [],
) -> Request:
    """faults_of: what else is wrong with the configuration, in the eyes of the type it is for.

    Raises CniError; its code is that of the first fault, its message names them all.
    """
    faults: list[tuple[int, str]] = []
    verb = _verb(environment)
    if verb is Verb.VERSION:
        return Request(verb=verb, version=version_of(stdin))
    faults += _environment_faults(verb, environment)
    args, arg_faults = _args(environment.get("CNI_ARGS", ""))
    faults += arg_faults
    config, config_faults = _config(stdin)
    faults += config_faults
    version, version_faults = _version(verb, config)
    faults += version_faults
    faults += [
        (UNDECODABLE, f"{key} is no object")
        for key in ("prevResult", "runtimeConfig", "args")
        if not isinstance(config.get(key), dict | None)
    ]
    previous = config.get("prevResult") if isinstance(config.get("prevResult"), dict) else None
    if verb is Verb.CHECK and previous is None:
        faults.append((INVALID_CONFIG, "CHECK needs prevResult"))
    valid, valid_faults = _valid_attachments(verb, config)
    faults += valid_faults
    request = Request(
        verb=verb,
        version=version,
        container_id=environment.get("CNI_CONTAINERID", ""),
        ifname=environment.get("CNI_IFNAME", ""),
        netns=environment.get("CNI_NETNS", ""),
        network=str(config.get("name", "")),
        args=args,
        previous=previous,
        valid_attachments=valid,
        config=config,
        executable=environment.get(EXECUTABLE, ""),
    )
    if config:
        faults += [(INVALID_CONFIG, fault) for fault in faults_of(request)]
    if faults:
        raise CniError(faults[0][0], "; ".join(text for _, text in faults))
    return request


def _verb(environment: Mapping[str, str]) -> Verb:
    text = environment.get("CNI_COMMAND", "")
    if not text:
        raise CniError(INVALID_ENVIRONMENT, "required env variables [CNI_COMMAND] missing")
    try:
        return Verb(text)
    except ValueError:
        known = ", ".join(Verb)
        raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {text} (known: {known})") from None


def _environment_faults(verb: Verb, environment: Mapping[str, str]) -> list[tuple[int, str]]:
    needed = [v for v in ENVIRONMENT if verb in v.required]
    missing = [v.name for v in needed if not environment.get(v.name)]
    faults = []
    if missing:
        faults.append((INVALID_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing"))
    for variable in needed:
        value = environment.get(variable.name, "")
        fault = variable.fault(value) if value else ""
        if fault:
            faults.append((INVALID_ENVIRONMENT, f"invalid {variable.name} {value!r}: {fault}"))
    return faults


_KNOWN_ARGS = frozenset(
    {"IgnoreUnknown", "IP", "MAC", "GATEWAY"}
    | {"K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"}
)


def _args(text: str) -> tuple[dict[str, str], list[tuple[int, str]]]:
    args: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            return {}, [(INVALID_ENVIRONMENT, f"CNI_ARGS: invalid pair {pair!r}, expected KEY=VALUE")]
        args[key] = value
    unknown = sorted(args.keys() - _KNOWN_ARGS)
    if unknown and args.get("IgnoreUnknown", "").lower() not in ("1", "t", "true"):
        return {}, [(INVALID_ENVIRONMENT, f"CNI_ARGS: unknown args {unknown} (IgnoreUnknown=1 skips them)")]
    return args, []


def _config(stdin: bytes) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    try:
        config = json.loads(stdin.decode())
    except (ValueError, RecursionError) as error:
        return {}, [(UNDECODABLE, f"network configuration on stdin: {error}")]
    if not isinstance(config, dict):
        return {}, [(UNDECODABLE, "network configuration on stdin: not an object")]
    name = config.get("name", "")
    if not isinstance(name, str):
        return config, [(UNDECODABLE, f"name is {name!r}, expected a string")]
    if not name:
        return config, [(INVALID_CONFIG, "missing network name")]
    if not _IDENTIFIER.fullmatch(name):
        return config, [(INVALID_CONFIG, f"invalid characters in network name {name!r}")]
    return config, []


def _version(verb: Verb, config: Mapping[str, Any]) -> tuple[str, list[tuple[int, str]]]:
    version = _named_version(config)
    if version not in VERSIONS:
        return NEWEST, [
            (
                INCOMPATIBLE_VERSION,
                f"cniVersion {version!r} is not supported; use one of {', '.join(VERSIONS)}",
            )
        ]
    since = SINCE.get(verb)
    # A configuration that could not be read has no version to find fault with.
    if config and since is not None and VERSIONS.index(version) < VERSIONS.index(since):
        return version, [
            (INCOMPATIBLE_VERSION, f"config version {version} does not allow {verb}, which came with {since}")
        ]
    return version, []


def _valid_attachments(
    verb: Verb, config: Mapping[str, Any]
) -> tuple[tuple[tuple[str, str], ...] | None, list[tuple[int, str]]]:
    key = "cni.dev/valid-attachments"
    if verb is not Verb.GC or config.get(key) is None:
        return None, []
    try:
        return tuple((str(a["containerID"]), str(a["ifname"])) for a in config[key]), []
    except (TypeError, KeyError):
        return None, [(UNDECODABLE, f"{key}: expected a list of objects with containerID and ifname")]


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _named_version(config: Mapping[str, Any]) -> Any:
    """What cniVersion says, which may be no version at all; without one it is the first."""
    version = config.get("cniVersion")
    return VERSIONS[0] if version in (None, "") else version


def version_of(stdin: bytes) -> str:
    """The version to answer in when the request could not be read otherwise."""
    try:
        version = _named_version(json.loads(stdin.decode()))
    except (ValueError, AttributeError, RecursionError):
        return NEWEST
    return version if version in VERSIONS else NEWEST


# --- answers --------------------------------------------------------------------------------------


def encode_error(error: CniError, version: str) -> bytes:
    body: dict[str, Any] = {"cniVersion": version, "code": error.code, "msg": error.message}
    if error.details:
        body["details"] = error.details
    return json.dumps(body).encode()


def encode_versions() -> bytes:
    return json.dumps({"cniVersion": NEWEST, "supportedVersions": list(VERSIONS)}).encode()
