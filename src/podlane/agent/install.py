"""The plugin's program and its network configuration, where a container runtime looks for them.

Written only once the node is ready: the configuration's appearance is what tells a kubelet that pods may
come. A file of somebody else is never replaced; ours is, in one step, so that a runtime finds either
the old one or the new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import podlane
from podlane.agent.options import AgentOptions
from podlane.cni import aside, plugins, shim
from podlane.cni.service import SPOOL
from podlane.errors import ConfigError

NETWORK = "podlane"
PROGRAM = "podlane"
CONFLIST = "10-podlane.conflist"
MARK = b"PODLANE_CNI_SOCKET"  # every program of ours names it

# Paths that the program knows by itself; others are written into the copy that is installed.
KNOWN_SOCKET, KNOWN_STATE = "/run/podlane/cni.sock", "/var/lib/podlane"
_ELF = b"\x7fELF"
_PATH_MAX = 4096  # of each of the two in native/cni_shim.c


def install(options: AgentOptions, *, take_over: bool = False) -> None:
    """What the options ask for. take_over: others' networks that would go before ours are set aside.

    Raises ConfigError naming the file that is in the way.
    """
    program(options)
    if options.cni_conf_dir:
        directory = _directory(options.cni_conf_dir)
        if take_over:
            aside.set_aside(directory, CONFLIST)
        _put(directory / CONFLIST, _conflist(), 0o644, lambda old: _network(old) == NETWORK)


def program(options: AgentOptions) -> list[Path]:
    """The executable, and a link for each type of the reference plugins.

    Returns the files of these names that are somebody else's, and stay. Raises ConfigError if that is so
    for our own name.
    """
    if not options.cni_bin_dir:
        return []
    directory = Path(options.cni_bin_dir)
    _program(directory, options)
    return [path for path in (directory / name for name in plugins.load()) if not _link(path)]


def _link(path: Path) -> bool:
    """path is a link to our program. False if a file of somebody else is there."""
    try:
        if path.is_symlink() and os.readlink(path) == PROGRAM:
            return True
        if path.is_symlink() or (path.exists() and not _ours(path.read_bytes())):
            return False
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(PROGRAM)
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return True


def compiled() -> Path | None:
    """The program built from native/cni_shim.c, if a compiler ran: of the package, or of the source tree."""
    package = Path(podlane.__file__).parent
    for path in (package / "cni" / "podlane-cni", package.parents[1] / "native" / "build" / "podlane-cni"):
        if path.exists():
            return path
    return None


def _program(directory: Path, options: AgentOptions) -> None:
    program = (compiled() or Path(shim.__file__)).read_bytes()
    directory = _directory(str(directory))
    if (options.cni_socket, options.state_dir) != (KNOWN_SOCKET, KNOWN_STATE):
        program = _with_paths(
            program, os.path.abspath(options.cni_socket), os.path.abspath(options.state_dir)
        )
    _put(directory / PROGRAM, program, 0o755, _ours)


def _with_paths(program: bytes, socket: str, state: str) -> bytes:
    """A copy of the program that knows this agent's paths: they stand in its data, once each."""
    if not program.startswith(_ELF):
        text = program.decode()
        text = text.replace(f'SOCKET = "{KNOWN_SOCKET}"', f"SOCKET = {socket!r}")
        return text.replace(f'SPOOL = "{KNOWN_STATE}/{SPOOL}"', f"SPOOL = {state + '/' + SPOOL!r}").encode()
    for key, known, wanted in (
        ("PODLANE_CNI_SOCKET=", KNOWN_SOCKET, socket),
        ("PODLANE_CNI_SPOOL=", f"{KNOWN_STATE}/{SPOOL}", f"{state}/{SPOOL}"),
    ):
        old, new = (os.fsencode(key + path) + b"\0" for path in (known, wanted))
        if len(new) > _PATH_MAX:
            raise ConfigError(f"{wanted}: a path of more than {_PATH_MAX - len(key) - 1} bytes")
        size = max(len(old), len(new))
        place = program.index(old)
        program = program[:place] + new.ljust(size, b"\0") + program[place + size :]
    return program


def _conflist() -> bytes:
    # What the runtime shall hand on: containers' hostPorts, the pod's bandwidth annotations, and addresses
    # that somebody wants by name.
    capabilities = dict.fromkeys(("portMappings", "bandwidth", "ips", "mac"), True)
    plugin = {"type": PROGRAM, "capabilities": capabilities}
    # A runtime that knows cniVersions takes the newest that it serves too (and then asks STATUS and GC);
    # older ones, as containerd 1.x, know cniVersion alone, and refuse results of 1.1.0.
    versions = {"cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.1.0"]}
    document = {**versions, "name": NETWORK, "plugins": [plugin]}
    return (json.dumps(document, indent=2) + "\n").encode()


def is_our_conflist(path: Path) -> bool:
    return _network(path.read_bytes()) == NETWORK


def is_our_program(path: Path) -> bool:
    """Also of a link to it."""
    if path.is_symlink():
        return os.readlink(path) == PROGRAM
    return _ours(path.read_bytes())


def _network(content: bytes) -> str:
    try:
        return str(json.loads(content).get("name"))
    except (ValueError, AttributeError):
        return ""


def _ours(content: bytes) -> bool:
    return MARK in content


def _directory(text: str) -> Path:
    path = Path(text)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return path


def _put(path: Path, content: bytes, mode: int, ours: Callable[[bytes], bool]) -> None:
    try:
        present = path.read_bytes()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    else:
        if present == content:
            return
        if not ours(present):
            raise ConfigError(f"{path} is not podlane's and stays; move it away, or choose another directory")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{path}: {error.strerror}") from None
