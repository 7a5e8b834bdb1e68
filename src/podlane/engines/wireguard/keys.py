"""A node's key (Curve25519, RFC 7748): made on the node, kept in one file, never sent anywhere."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path

from podlane.model.backends import wireguard_key

log = logging.getLogger(__name__)


def kept(path: Path) -> bytes:
    """The private key in the file at path; made (mode 0600) when there is none that can be read."""
    try:
        key = wireguard_key(path.read_text().strip())
    except (FileNotFoundError, UnicodeDecodeError):
        key = None
    if key is None:
        if path.exists():
            log.warning("%s holds no WireGuard key: a new one is made", path)
        key = _generated()
        _write(path, base64.b64encode(key) + b"\n")
    return key


def _generated() -> bytes:
    # Imported here: an agent without WireGuard has no use for the library, which takes 8 MiB.
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return X25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def public(private: bytes) -> str:
    """As WireGuard writes it, in base64."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
