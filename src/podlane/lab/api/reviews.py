"""Questions about rights (authorization.k8s.io/v1): who one is, and what one or somebody else may do."""

from __future__ import annotations

from podlane.lab.api import rbac
from podlane.lab.api.rbac import Attributes, Authorizer, User
from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj

_GROUPS = ("authorization.k8s.io", "authentication.k8s.io")
_ALL: Obj = {
    "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
    "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
    "incomplete": False,
}


def answers(resource: Resource) -> bool:
    """The resource is a question, not something that is stored."""
    return resource.group in _GROUPS


def answer(authorizer: Authorizer, user: User, resource: Resource, question: Obj) -> Obj:
    """The question with its status. user: who asks."""
    found = {**question, "apiVersion": resource.api_version, "kind": resource.kind}
    found.setdefault("metadata", {})
    spec = question.get("spec") or {}
    match resource.kind:
        case "SelfSubjectReview":
            found["status"] = {"userInfo": user.info}
        case "SelfSubjectRulesReview":
            found["status"] = _rules(authorizer, user, spec.get("namespace") or "")
        case "SelfSubjectAccessReview":
            found["status"] = {"allowed": authorizer.allows(user, _attributes(spec))}
        case _:
            other = User(spec.get("user") or "", tuple(spec.get("groups") or ()))
            found["status"] = {"allowed": authorizer.allows(other, _attributes(spec))}
    return found


def _rules(authorizer: Authorizer, user: User, namespace: str) -> Obj:
    if rbac.MASTERS in user.groups:
        return dict(_ALL)
    resources, paths = rbac.rules_of(authorizer.rules(user, namespace))
    return {"resourceRules": resources, "nonResourceRules": paths, "incomplete": False}


def _attributes(spec: Obj) -> Attributes:
    if (path := spec.get("nonResourceAttributes")) is not None:
        return Attributes(verb=path.get("verb") or "", path=path.get("path") or "")
    given = spec.get("resourceAttributes") or {}
    names = ("verb", "group", "resource", "subresource", "namespace", "name")
    return Attributes(**{name: given.get(name) or "" for name in names})
