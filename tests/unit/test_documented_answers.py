# ruff: noqa: E501 (answers are as long as they are)
"""Answers in the words of a kube-apiserver, as Kubernetes documents them, and what becomes of each.

Sources: "API concepts" (efficient detection of changes, streaming lists, large result sets in chunks), API
priority and fairness, the messages of k8s.io/apimachinery/pkg/api/errors. None was recorded from a server
that ran here: there is none to be had.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from podlane.errors import (
    AlreadyExistsError,
    ApiError,
    ConflictError,
    GoneError,
    InvalidError,
    NotFoundError,
)
from podlane.model.objects import Node, Pod
from podlane.watch.http import refusal
from podlane.watch.reflector import Delete, Reflector, Replace, Source, State, Upsert


def body(code: int, reason: str, message: str, **more: Any) -> bytes:
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return json.dumps(status | {"reason": reason, **more, "code": code}).encode() + b"\n"


STATUSES: list[tuple[bytes, int, type[ApiError], float]] = [
    (
        body(
            410,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You can start a new "
            "list without the continue parameter, or use the continue token in this response to retrieve the "
            "remainder of the results. Continuing with the provided token results in an inconsistent list - "
            "objects that were created, modified, or deleted between the time the first chunk was returned and "
            "now may show up in the list.",
            metadata={"continue": "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6LTF9"},
        ),
        410,
        GoneError,
        0,
    ),
    (body(410, "Gone", "too old resource version: 1 (2)"), 410, GoneError, 0),
    (
        body(
            504,
            "Timeout",
            "Too large resource version: 999, current: 100",
            details={
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            },
        ),
        504,
        ApiError,
        1,
    ),
    (
        body(
            429,
            "TooManyRequests",
            "The server has received too many requests and has asked us to try again later",
            details={"retryAfterSeconds": 1},
        ),
        429,
        ApiError,
        1,
    ),
    (b"Too many requests, please try again later.\n", 429, ApiError, 0),
    (
        body(
            403,
            "Forbidden",
            'pods is forbidden: User "system:node:a" cannot list resource "pods" in API group "" at the cluster scope',
            details={"kind": "pods"},
        ),
        403,
        ApiError,
        0,
    ),
    (body(401, "Unauthorized", "Unauthorized"), 401, ApiError, 0),
    (
        body(404, "NotFound", 'nodes "a" not found', details={"name": "a", "kind": "nodes"}),
        404,
        NotFoundError,
        0,
    ),
    (b"404 page not found\n", 404, NotFoundError, 0),
    (
        body(
            409,
            "Conflict",
            'Operation cannot be fulfilled on nodes "a": the object has been modified; please apply your changes to '
            "the latest version and try again",
            details={"name": "a", "kind": "nodes"},
        ),
        409,
        ConflictError,
        0,
    ),
    (
        body(409, "AlreadyExists", 'events "x" already exists', details={"name": "x", "kind": "events"}),
        409,
        AlreadyExistsError,
        0,
    ),
    (
        body(
            422,
            "Invalid",
            'ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for '
            "watch unless the WatchList feature gate is enabled",
            details={
                "group": "meta.k8s.io",
                "kind": "ListOptions",
                "causes": [
                    {"reason": "FieldValueForbidden", "message": "Forbidden", "field": "sendInitialEvents"}
                ],
            },
        ),
        422,
        InvalidError,
        0,
    ),
    (body(500, "InternalError", "Internal error occurred: etcdserver: no leader"), 500, ApiError, 0),
    (body(503, "ServiceUnavailable", "apiserver is shutting down"), 503, ApiError, 0),
    (b'{"kind":"Status","details":{"retryAfterSeconds":"soon"},"message":7}', 500, ApiError, 0),
    (b"", 502, ApiError, 0),
]


@pytest.mark.parametrize(("answer", "code", "kind", "retry_after_s"), STATUSES)
def test_a_refusal(answer: bytes, code: int, kind: type[ApiError], retry_after_s: float) -> None:
    error = refusal(code, answer)
    assert type(error) is kind
    assert (error.code, error.retry_after_s) == (code, retry_after_s)
    assert str(error)


# --- a watch's lines ------------------------------------------------------------------------------

ADDED = b"""{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p","namespace":"d","uid":"u",\
"resourceVersion":"12","creationTimestamp":"2026-01-01T00:00:00Z","labels":{"app":"web"},"managedFields":[{"manager":\
"kubelet","operation":"Update","fieldsType":"FieldsV1","fieldsV1":{"f:status":{}},"subresource":"status"}]},"spec":{\
"nodeName":"n","containers":[{"name":"c","image":"i","resources":{}}]},"status":{"phase":"Running","podIP":"10.0.0.1",\
"podIPs":[{"ip":"10.0.0.1"}],"qosClass":"BestEffort"}}}"""
BOOKMARK = b"""{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"12746",\
"creationTimestamp":null},"spec":{"containers":null},"status":{}}}"""
INITIAL_END = b"""{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"10245",\
"creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}},"spec":{"containers":null},"status":{}}}"""
DELETED = ADDED.replace(b'"ADDED"', b'"DELETED"').replace(b'"12"', b'"14"')
EXPIRED = b"""{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":\
"too old resource version: 10 (11904)","reason":"Expired","code":410}}"""
GONE_CACHE = b"""{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":\
"The resourceVersion for the provided watch is too old.","reason":"Expired","code":410}}"""
ETCD_ERROR = b"""{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":\
"Internal error occurred: etcd event received with PrevKv=nil","reason":"InternalError","code":500}}"""
EMPTY_LIST = b"""{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"10"},"items":[]}"""
CHUNK = b"""{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"10245","continue":"ENCODED_CONTINUE_TOKEN",\
"remainingItemCount":753},"items":[]}"""


def watching() -> Reflector[Pod]:
    reflector = Reflector(Source("Pod"), Pod, streaming=False)
    assert isinstance(reflector.page(EMPTY_LIST), Replace)
    return reflector


def test_a_pod_comes_and_goes() -> None:
    reflector = watching()
    found = reflector.event(ADDED)
    assert isinstance(found, Upsert)
    assert (found.object.spec.node_name, reflector.version) == ("n", "12")
    assert reflector.event(DELETED) == Delete(("d", "p"))
    assert reflector.version == "14"


def test_a_bookmark_has_an_object_that_is_no_whole_one() -> None:
    reflector = watching()
    assert reflector.event(BOOKMARK) is None
    assert reflector.version == "12746"


def test_a_streaming_list() -> None:
    reflector = Reflector(Source("Pod"), Pod)
    assert reflector.next_request(300).query == {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "300",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
    }
    assert reflector.event(ADDED) is None
    found = reflector.event(INITIAL_END)
    assert isinstance(found, Replace)
    assert [each.name for each in found.objects] == ["p"]
    assert reflector.next_request(300).query["resourceVersion"] == "10245"


@pytest.mark.parametrize(
    ("line", "kind"), [(EXPIRED, GoneError), (GONE_CACHE, GoneError), (ETCD_ERROR, ApiError)]
)
def test_an_error_event_lists_anew(line: bytes, kind: type[ApiError]) -> None:
    reflector = watching()
    reflector.next_request(300)
    with pytest.raises(kind) as caught:
        reflector.event(line)
    assert reflector.refused(caught.value) is (kind is GoneError)
    assert reflector.state is State.LISTING


def test_a_chunk_of_a_list_is_followed_by_the_next() -> None:
    reflector = Reflector(Source("Pod"), Pod, streaming=False)
    assert reflector.page(CHUNK) is None
    assert reflector.next_request(300).query["continue"] == "ENCODED_CONTINUE_TOKEN"


def test_an_object_of_odd_shape_does_not_hold_up_those_after_it() -> None:
    reflector = Reflector(Source("Node"), Node, streaming=False)
    reflector.page(EMPTY_LIST)
    odd = b'{"type":"ADDED","object":{"metadata":{"name":"n","resourceVersion":"20","annotations":["x"]}}}'
    assert reflector.event(odd) is None
    assert (list(reflector.malformed), reflector.version) == ([("", "n")], "20")
