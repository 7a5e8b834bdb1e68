"""Executing a plugin of CNI_PATH that is not ours, as the specification's "delegation" says. Blocking.

The child runs in the node's network namespace, with the request's environment and the configuration on
its standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from podlane.cni import protocol
from podlane.cni.protocol import Verb
from podlane.cni.results import Result, decode
from podlane.errors import CniError
from podlane.kernel import netns

_TIMEOUT_S: Final = 120


def find(kind: str, search: str) -> Path:
    """The executable in one of the directories of CNI_PATH. Raises CniError."""
    if not kind or "/" in kind or kind in (".", ".."):
        raise CniError(protocol.INVALID_CONFIG, f"invalid plugin type {kind!r}")
    for directory in filter(None, search.split(":")):
        path = Path(directory, kind)
        if path.is_file() and os.access(path, os.X_OK):
            return path
    what = f"plugin type {kind!r} is none of ours, and CNI_PATH {search!r} has no such executable"
    raise CniError(protocol.INVALID_CONFIG, what)


def execute(
    program: Path,
    environment: Mapping[str, str],
    config: Mapping[str, Any],
    *,
    node_netns: int | None,
    pod_netns: int | None,
) -> Result:
    """Its result, empty where it prints none. Raises CniError: the plugin's own, or why it said nothing."""
    verb = environment["CNI_COMMAND"]
    given = {key: value for key, value in environment.items() if key != protocol.EXECUTABLE}
    given["PATH"] = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    if pod_netns is not None and not _is_open_at(given.get("CNI_NETNS", ""), pod_netns):
        # The runtime's path leads nowhere here: the descriptor does.
        given["CNI_NETNS"] = f"/proc/{os.getpid()}/fd/{pod_netns}"
    try:
        with netns.entered(node_netns) if node_netns is not None else nullcontext():
            child = subprocess.Popen(
                [program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=given,
            )
    except OSError as error:
        raise CniError(protocol.IO_FAILURE, f"{program}: {error.strerror}") from None
    with child:
        try:
            stdout, stderr = child.communicate(json.dumps(config).encode(), timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise CniError(protocol.TRY_AGAIN_LATER, f"{program}: no answer in {_TIMEOUT_S} s") from None
    if child.returncode:
        raise _failure(program, child.returncode, stdout or stderr)
    if verb != Verb.ADD:
        return Result()
    try:
        found = json.loads(stdout)
    except ValueError:
        raise CniError(protocol.UNDECODABLE, f"{program}: its result is no JSON: {stdout[:200]!r}") from None
    return decode(found if isinstance(found, dict) else {}, f"result of {program}")


def _is_open_at(path: str, fd: int) -> bool:
    try:
        there, here = os.stat(path), os.fstat(fd)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _failure(program: Path, status: int, said: bytes) -> CniError:
    try:
        error = json.loads(said)
        return CniError(int(error["code"]), str(error.get("msg", "")), str(error.get("details", "")))
    except (ValueError, TypeError, KeyError):
        text = said.decode(errors="replace").strip()[:500]
        return CniError(protocol.INTERNAL, f"{program} ended with status {status}: {text}")
