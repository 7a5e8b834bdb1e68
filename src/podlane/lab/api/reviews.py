"""Questions about rights. The lab has one user who may do everything, so every answer is yes."""

from __future__ import annotations

from podlane.lab.api.resources import Resource
from podlane.lab.client import Obj

USER: Obj = {"username": "podlane-admin", "groups": ["system:masters", "system:authenticated"]}

_GROUPS = ("authorization.k8s.io", "authentication.k8s.io")


def answers(resource: Resource) -> bool:
    """The resource is a question, not something that is stored."""
    return resource.group in _GROUPS


def answer(resource: Resource, question: Obj) -> Obj:
    """The question with its status."""
    found = {**question, "apiVersion": resource.api_version, "kind": resource.kind}
    found.setdefault("metadata", {})
    match resource.kind:
        case "SelfSubjectReview":
            found["status"] = {"userInfo": USER}
        case "SelfSubjectRulesReview":
            found["status"] = {
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": False,
            }
        case _:
            found["status"] = {"allowed": True, "reason": "this API server enforces no RBAC"}
    return found
