"""Who may do what: RBAC, evaluated as kube-apiserver does (plugin/pkg/auth/authorizer/rbac, rbac/v1).

Rights only add up: a request is allowed if one rule of one bound role allows it. Roles are looked up when
they are asked for, so that what is taken away is gone with the next request; a watch that is open goes on, as
in every cluster.

The group system:masters may do everything without a rule, and everybody who is known may discover what is
served and ask about their own rights (system:discovery, system:basic-user).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from podlane.errors import ApiError
from podlane.lab.api.store import Store
from podlane.lab.client import Obj

GROUP: Final = "rbac.authorization.k8s.io"
MASTERS: Final = "system:masters"
AUTHENTICATED: Final = "system:authenticated"
_SELF: Final = frozenset({"selfsubjectaccessreviews", "selfsubjectrulesreviews", "selfsubjectreviews"})
_DISCOVERY: Final = ("/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz")


class User(Struct, frozen=True):
    """authentication.k8s.io/v1 UserInfo"""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""

    @property
    def info(self) -> Obj:
        return {"username": self.name, "groups": list(self.groups)} | ({"uid": self.uid} if self.uid else {})


def service_account(namespace: str, name: str, uid: str = "") -> User:
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}", AUTHENTICATED)
    return User(f"system:serviceaccount:{namespace}:{name}", groups, uid)


class Attributes(Struct, frozen=True, kw_only=True):
    """What a request would do. path: of one that is about no resource, "" otherwise."""

    verb: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""


class Authorizer:
    def __init__(self, store: Store) -> None:
        self._store = store

    def require(self, user: User, asked: Attributes) -> None:
        """Raises ApiError(403), in kube-apiserver's words."""
        if self.allows(user, asked):
            return
        message = f'{_subject(asked)} is forbidden: User "{user.name}" cannot {_words(asked)}'
        named = {"name": asked.name, "group": asked.group, "kind": asked.resource}
        details: dict[str, object] = {key: value for key, value in named.items() if value}
        raise ApiError(message, code=403, reason="Forbidden", details=details)

    def allows(self, user: User, asked: Attributes) -> bool:
        if MASTERS in user.groups or _everybody(user, asked):
            return True
        return any(allows(rule, asked) for rule in self.rules(user, asked.namespace))

    def rules(self, user: User, namespace: str) -> Iterator[Obj]:
        """What is bound to the user: in the whole cluster, and in a namespace."""
        for kind, where in (("clusterrolebindings", ""), ("rolebindings", namespace)):
            if kind == "rolebindings" and not namespace:
                continue
            for record in self._store.records(f"{kind}.{GROUP}", where):
                if any(_is(user, each, where) for each in record.obj.get("subjects") or ()):
                    yield from self._role(record.obj["roleRef"], where)

    def _role(self, ref: Obj, namespace: str) -> list[Obj]:
        cluster = ref["kind"] == "ClusterRole"
        storage = f"{'clusterroles' if cluster else 'roles'}.{GROUP}"
        record = self._store.get(storage, "" if cluster else namespace, ref["name"])
        return (record.obj.get("rules") or []) if record is not None else []


def allows(rule: Obj, asked: Attributes) -> bool:
    """One PolicyRule (pkg/apis/rbac/v1/evaluation_helpers.go)."""
    verbs = rule.get("verbs") or ()
    if "*" not in verbs and asked.verb not in verbs:
        return False
    if asked.path:
        return any(_covers(each, asked.path) for each in rule.get("nonResourceURLs") or ())
    groups, names = rule.get("apiGroups") or (), rule.get("resourceNames") or ()
    if "*" not in groups and asked.group not in groups:
        return False
    if names and asked.name not in names:
        return False
    wanted = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    wildcards = ("*", f"*/{asked.subresource}") if asked.subresource else ("*",)
    return any(each == wanted or each in wildcards for each in rule.get("resources") or ())


def _covers(pattern: str, path: str) -> bool:
    return pattern in ("*", path) or (pattern.endswith("*") and path.startswith(pattern.rstrip("*")))


def _is(user: User, subject: Obj, namespace: str) -> bool:
    match subject["kind"]:
        case "User":
            return bool(subject["name"] == user.name)
        case "Group":
            return subject["name"] in user.groups
        case _:
            where = subject.get("namespace") or namespace
            return user.name == f"system:serviceaccount:{where}:{subject['name']}"


def _everybody(user: User, asked: Attributes) -> bool:
    if AUTHENTICATED not in user.groups:
        return False
    if asked.path:
        return asked.verb == "get" and any(
            asked.path == p or asked.path.startswith(f"{p}/") for p in _DISCOVERY
        )
    return asked.verb == "create" and asked.resource in _SELF


def _subject(asked: Attributes) -> str:
    if asked.path:
        return "forbidden" if asked.path == "/" else asked.path
    resource = f"{asked.resource}.{asked.group}" if asked.group else asked.resource
    return f'{resource} "{asked.name}"' if asked.name else resource


def _words(asked: Attributes) -> str:
    if asked.path:
        return f'{asked.verb} path "{asked.path}"'
    resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    scope = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    return f'{asked.verb} resource "{resource}" in API group "{asked.group}" {scope}'


def rules_of(rules: Iterator[Obj]) -> tuple[list[Any], list[Any]]:
    """As SelfSubjectRulesReview tells them: of resources, and of paths."""
    found = list(rules)
    return [r for r in found if "resources" in r], [r for r in found if "nonResourceURLs" in r]
