"""POST .../serviceaccounts/NAME/token: a TokenRequest and its answer (KEP 1205).

What the account may do is for RBAC to say. What pods find in their volumes is the administrator's token.
"""

from __future__ import annotations

from podlane.errors import ApiError
from podlane.lab.api import accounts, metadata, status, validation_decode
from podlane.lab.client import Obj

API_VERSION, KIND = "authentication.k8s.io/v1", "TokenRequest"
_DEFAULT_S, _LEAST_S, _MOST_S = 3600, 600, 1 << 32
"""pkg/apis/authentication: defaults.go and validation.go."""


def answer(account: Obj, question: Obj, admin_token: str, now: float) -> Obj:
    """The question with its status. Raises ApiError: 400, 422.

    admin_token: what tokens are signed with; now: seconds since 1970.
    """
    given = (question.get("apiVersion"), question.get("kind"))
    if given != (API_VERSION, KIND):
        raise status.bad_request(f"a {KIND} of {API_VERSION} is expected, not {given[1]} of {given[0]}")
    found, _ = validation_decode.decode(question)
    spec = found.setdefault("spec", {})
    lasts_s = spec.setdefault("expirationSeconds", _DEFAULT_S)
    if not _LEAST_S <= lasts_s <= _MOST_S:
        why = (
            "may not specify a duration less than 10 minutes"
            if lasts_s < _LEAST_S
            else f"may not specify a duration larger than 2^32 seconds ({_MOST_S})"
        )
        message = f'{KIND}.authentication.k8s.io "{account["metadata"]["name"]}" is invalid: '
        message += f"spec.expirationSeconds: Invalid value: {lasts_s}: {why}"
        raise ApiError(message, code=422, reason="Invalid")
    meta = {key: account["metadata"][key] for key in ("name", "namespace")}
    token = accounts.sign(
        admin_token,
        meta["namespace"],
        meta["name"],
        uid=account["metadata"]["uid"],
        audiences=tuple(spec.get("audiences") or ()),
        expires_s=now + lasts_s,
    )
    return {
        **found,
        "metadata": {**found.get("metadata", {}), **meta},
        "status": {"token": token, "expirationTimestamp": metadata.timestamp(now + lasts_s)},
    }
