"""TLS to the API server: the context to connect with, and what to do about one that does not get through."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from datetime import datetime
from typing import Final

from podlane.errors import ConfigError
from podlane.watch.kubeconfig import Access

# OpenSSL, x509_vfy.h
_EXPIRED: Final = 10
_NOT_YET: Final = 9
_WRONG_NAME: Final = frozenset({62, 64})
_UNKNOWN_ISSUER: Final = frozenset({18, 19, 20, 21})


def context(access: Access) -> ssl.SSLContext:
    """Raises ConfigError for certificates that cannot be used, naming the file."""
    if access.ca_pem is None:
        found = ssl.create_default_context()
    else:
        found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            found.load_verify_locations(cadata=access.ca_pem.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(f"{_authority(access)} holds no certificates: {error}") from None
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.insecure:
        found.check_hostname = False
        found.verify_mode = ssl.CERT_NONE
    if access.client_cert_pem and access.client_key_pem:
        try:
            _load_pair(found, access.client_cert_pem, access.client_key_pem)
        except (ssl.SSLError, ValueError) as error:
            what = f"{_client(access)} with {access.client_key_file or 'client-key-data'}"
            raise ConfigError(f"{what} cannot be used: {error}") from None
    return found


def _load_pair(found: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """load_cert_chain reads files only: a memory file keeps the key off the disk."""
    fd = os.memfd_create("podlane-client", os.MFD_CLOEXEC)
    try:
        os.write(fd, certificate + b"\n" + key)
        found.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def advice(access: Access, error: BaseException | None, now: datetime) -> str:
    """What is wrong with certificates, and the remedy: sentences to put behind an error, "" for none.

    error: what the connection failed with; None when the API said 401.
    """
    return "; ".join(_advice(access, error, now))


def _advice(access: Access, error: BaseException | None, now: datetime) -> Iterator[str]:
    from podlane.watch import certificates

    if isinstance(error, ssl.SSLCertVerificationError):
        yield from _server_advice(access, error, now)
    # Whatever the error: who refuses a certificate may break the connection before its alert is read.
    for each in certificates.read(access.client_cert_pem or b"")[:1]:
        if fault := each.fault(now):
            yield (
                f"{_client(access)} ({each.subject}) {fault}: have it issued anew"
                + (", the file is read again by itself" if access.client_cert_file else "")
            )


def _server_advice(access: Access, error: ssl.SSLCertVerificationError, now: datetime) -> Iterator[str]:
    from podlane.watch import certificates

    code = error.verify_code
    if code in _UNKNOWN_ISSUER:
        held = certificates.read(access.ca_pem or b"")
        names = ", ".join(each.subject for each in held) or "the system's"
        yield (
            f"none of the authorities in {_authority(access)} ({names}) signed the server's certificate: put "
            "the cluster's own there (kube-root-ca.crt of any namespace has it)"
        )
    elif code in _WRONG_NAME:
        yield "use a name the server's certificate has, or say it as tls-server-name"
    elif code in (_EXPIRED, _NOT_YET):
        for each in certificates.read(access.ca_pem or b""):
            if fault := each.fault(now):
                yield f"the authority {each.subject} in {_authority(access)} {fault}"
                return
        yield "renew the server's certificate (kubeadm certs renew apiserver), or set this machine's clock"


def _authority(access: Access) -> str:
    if access.ca_pem is None:
        return "the system's trust store"
    return f"certificate-authority {access.ca_file}" if access.ca_file else "certificate-authority-data"


def _client(access: Access) -> str:
    if access.client_cert_file:
        return f"client-certificate {access.client_cert_file}"
    return "the client certificate of the exec credentials" if access.exec else "client-certificate-data"
