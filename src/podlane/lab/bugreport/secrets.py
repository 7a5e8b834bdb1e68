"""Secrets known by value: read where they are kept, to be found wherever else they stand."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from podlane import redaction
from podlane.errors import PodlaneError
from podlane.watch import kubeconfig

LEAST = 6  # what is shorter is no secret, and would be found everywhere


def known(kubeconfigs: Iterable[Path | None], key_files: Iterable[Path], configs: Iterable[Any]) -> set[str]:
    """kubeconfigs: None for the one that kubectl would take. key_files: hold nothing but a secret. configs:
    mappings with secrets at names that say so. What cannot be read holds nothing.
    """
    found: set[str] = set()
    for path in kubeconfigs:
        found.update(_of_kubeconfig(path))
    for path in key_files:
        try:
            found.update(_forms(path.read_text(errors="replace").strip()))
        except OSError:
            continue
    for each in configs:
        for secret in _of_mapping(each):
            found.update(_forms(secret))
    for name, value in os.environ.items():
        if redaction.is_secret(name):
            found.update(_forms(value))
    return {each for each in found if len(each) >= LEAST}


def _of_kubeconfig(path: Path | None) -> Iterator[str]:
    try:
        access = kubeconfig.load(path, "")
    except (PodlaneError, OSError):
        return
    yield from _forms(access.token)
    yield from _forms(access.password)
    if access.token_file:
        with contextlib.suppress(OSError):
            yield from _forms(Path(access.token_file).read_text().strip())
    if access.client_key_pem:
        yield from _forms(access.client_key_pem.decode(errors="replace").strip())
        yield base64.b64encode(access.client_key_pem).decode()


def _forms(secret: str) -> Iterator[str]:
    """A secret as it stands, its lines, and its bytes in base64 and in hexadecimal."""
    secret = secret.strip()
    if len(secret) < LEAST:
        return
    yield secret
    yield from (line for line in secret.splitlines() if len(line) >= 16 and not line.startswith("-----"))
    yield base64.b64encode(secret.encode()).decode()
    try:
        raw = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        return
    if len(raw) >= 16:
        yield raw.hex()


def _of_mapping(found: Any) -> Iterator[str]:
    if isinstance(found, Mapping):
        for name, value in found.items():
            if isinstance(value, str) and redaction.is_secret(str(name)):
                yield value
            else:
                yield from _of_mapping(value)
    elif isinstance(found, (list, tuple)):
        for each in found:
            yield from _of_mapping(each)


def document(path: Path) -> Any:
    """The YAML of a file, None for one that cannot be read."""
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
