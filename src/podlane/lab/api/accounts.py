"""Bearer tokens: the administrator's, and those of service accounts (JWT, RFC 7519, signed with HS256).

A service account's token says whose it is and until when; it counts for as long as the account is there. The
key is derived from the administrator's token, so that a restarted control process knows what it has signed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any, Final

import msgspec

from podlane.lab.api.auth import bears
from podlane.lab.api.rbac import AUTHENTICATED, MASTERS, User, service_account
from podlane.lab.api.store import Store

ISSUER: Final = "https://kubernetes.default.svc"
ADMIN: Final = User("podlane-admin", (MASTERS, AUTHENTICATED))
ANONYMOUS: Final = User("system:anonymous", ("system:unauthenticated",))
_HEADER: Final = {"alg": "HS256", "typ": "JWT"}
_PREFIX: Final = "system:serviceaccount:"


def sign(
    admin_token: str,
    namespace: str,
    name: str,
    *,
    uid: str = "",
    audiences: tuple[str, ...] = (),
    expires_s: float,
) -> str:
    """A token of a service account. expires_s: seconds since 1970. uid "": of whichever is of that name."""
    bound: dict[str, Any] = {"name": name} | ({"uid": uid} if uid else {})
    claims = {
        "iss": ISSUER,
        "sub": f"{_PREFIX}{namespace}:{name}",
        "aud": list(audiences or (ISSUER,)),
        "exp": int(expires_s),
        "kubernetes.io": {"namespace": namespace, "serviceaccount": bound},
    }
    text = f"{_encoded(_HEADER)}.{_encoded(claims)}"
    return f"{text}.{_base64(_signature(admin_token, text))}"


class Accounts:
    """token: the administrator's; "" lets everybody in as one."""

    def __init__(self, store: Store, token: str) -> None:
        self._store, self._token = store, token

    def who(self, authorization: str, now_s: float | None = None) -> User | None:
        """Whom an Authorization header names; None for nobody that is known."""
        if not self._token or bears(authorization, self._token):
            return ADMIN
        scheme, _, given = authorization.partition(" ")
        claims = self._claims(given.strip()) if scheme.lower() == "bearer" else None
        if claims is None or claims["exp"] <= (time.time() if now_s is None else now_s):
            return None
        if ISSUER not in claims["aud"]:
            return None  # meant for somebody else
        bound = claims["kubernetes.io"]
        namespace, account = bound["namespace"], bound["serviceaccount"]
        record = self._store.get("serviceaccounts", namespace, account["name"])
        if record is None:
            return None
        uid = record.obj["metadata"]["uid"]
        return service_account(namespace, account["name"], uid) if account.get("uid", uid) == uid else None

    def _claims(self, token: str) -> dict[str, Any] | None:
        text, _, signature = token.rpartition(".")
        if not hmac.compare_digest(_base64(_signature(self._token, text)).encode(), signature.encode()):
            return None
        padded = text.partition(".")[2]
        claims: dict[str, Any] = msgspec.json.decode(
            base64.urlsafe_b64decode(padded + "=" * (-len(padded) % 4))
        )
        return claims


def _signature(admin_token: str, text: str) -> bytes:
    key = hashlib.sha256(b"service accounts:" + admin_token.encode()).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def _encoded(value: Any) -> str:
    return _base64(msgspec.json.encode(value))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
