"""Keys and the token of a lab: who may speak to its API, and how clients know it is the right one.

    DIR/ca.crt, ca.key           the lab's own authority, ECDSA P-256
    DIR/server.crt, server.key   the API server's certificate
    DIR/token                    the bearer token of the lab's administrator

All 0600 in a directory of 0700. They are made once; a restarted control process reads them again.
"""

from __future__ import annotations

import base64
import datetime
import hmac
import ipaddress
import os
import secrets
import ssl
from collections.abc import Iterable
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

_LIFE = datetime.timedelta(days=3650)
_SKEW = datetime.timedelta(hours=1)


class Pki(Struct, frozen=True):
    """directory: where the files are. ca_pem: what clients must trust. token: what they must bear."""

    directory: Path
    ca_pem: str
    token: str

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.directory / "server.crt", self.directory / "server.key")
        context.set_alpn_protocols(["http/1.1"])
        return context


def make_pki(directory: Path, names: Iterable[str], addresses: Iterable[str]) -> Pki:
    """The lab's keys, made if they are not there. names, addresses: what the server is reached by."""
    if not (directory / "token").exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        ca_key, ca = _authority()
        key, certificate = _server(ca_key, ca, names, addresses)
        for file, content in (
            ("ca.key", _key_pem(ca_key)),
            ("ca.crt", _pem(ca)),
            ("server.key", _key_pem(key)),
            ("server.crt", _pem(certificate)),
            ("token", secrets.token_urlsafe(32).encode()),  # last: its presence says that all are there
        ):
            write_private(directory / file, content)
    ca_pem = (directory / "ca.crt").read_text()
    return Pki(directory, ca_pem, (directory / "token").read_text().strip())


def write_private(path: Path, content: bytes) -> None:
    """Whole and 0600, or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def kubeconfig(pki: Pki, url: str, lab: str, token: str = "") -> str:
    """The text of a kubeconfig: cluster, user and context are named podlane-LAB.

    token "": the administrator's.
    """
    name = f"podlane-{lab}"
    cluster = {
        "server": url,
        "certificate-authority-data": base64.b64encode(pki.ca_pem.encode()).decode(),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": {"token": token or pki.token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "current-context": name,
    }
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def bears(header: str, token: str) -> bool:
    """An Authorization header carries the token. Takes the same time whatever it holds."""
    scheme, _, given = header.partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("podlane-ca")
    usage = _usage(sign_certificates=True)
    builder = _builder(name, name, key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    return key, builder.sign(key, hashes.SHA256())


def _server(
    ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate, names: Iterable[str], addresses: Iterable[str]
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives: list[x509.GeneralName] = [x509.DNSName(n) for n in dict.fromkeys(names)]
    alternatives += [x509.IPAddress(ipaddress.ip_address(a)) for a in dict.fromkeys(addresses)]
    builder = _builder(_name("podlane-apiserver"), ca.subject, key.public_key())
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(sign_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName(alternatives), False),
        (identifier, False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return key, builder.sign(ca_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _LIFE)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
