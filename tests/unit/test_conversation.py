"""What the built-in responder says, byte by byte."""

from __future__ import annotations

import json

import pytest

from podlane.lab.runtime.conversation import Conversation, Identity

WHO = Identity("web-0", "shop", "node-2")


def talk() -> Conversation:
    return Conversation(WHO, "10.244.1.9")


def split(answer: bytes) -> list[tuple[str, dict[str, str], bytes]]:
    """(status line, headers, body) of each response."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        size = int(headers.get("Content-Length", 0))
        found.append((status, headers, rest[:size]))
        answer = rest[size:]
    return found


def test_every_request_is_described():
    ((status, headers, body),) = split(
        talk().receive(b"PUT /a?b=c HTTP/1.1\r\nHost: web\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\nhi")
    )
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {
        "pod": "web-0",
        "namespace": "shop",
        "node": "node-2",
        "client": "10.244.1.9",
        "method": "PUT",
        "host": "web",
        "path": "/a?b=c",
        "headers": {"Host": "web", "X-A": "1, 2", "Content-Length": "2"},
    }


@pytest.mark.parametrize("path", ["/hostname", "/hostname?x=1"])
def test_hostname_is_plain(path):
    ((_, headers, body),) = split(talk().receive(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    assert headers["Content-Type"].startswith("text/plain")
    assert body == b"web-0"


def test_head_has_no_body():
    answer = talk().receive(b"HEAD /hostname HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"Content-Length: 5" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_connections_are_kept_as_asked():
    for request, closes in (
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False),
    ):
        conversation = talk()
        answer = conversation.receive(request)
        assert conversation.finished is closes, request
        assert (b"Connection: close" in answer) is closes


def test_pipelined_requests_are_answered_in_order_whatever_the_pieces():
    stream = (
        b"GET /1 HTTP/1.1\r\n\r\n"
        b"POST /2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nTrailer: y\r\n\r\n"
        b"POST /3 HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc"
        b"GET /4 HTTP/1.1\r\n\r\n"
    )
    for size in (1, 7, len(stream)):
        conversation = talk()
        pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
        answers = split(b"".join(map(conversation.receive, pieces)))
        assert [json.loads(body)["path"] for _, _, body in answers] == ["/1", "/2", "/3", "/4"]


def test_a_body_is_asked_for_when_the_client_waits():
    conversation = talk()
    head = b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    assert conversation.receive(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert conversation.receive(b"hi").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_broken_requests_are_refused(request_bytes):
    conversation = talk()
    assert conversation.receive(request_bytes).startswith(b"HTTP/1.1 400")
    assert conversation.finished


def test_endless_headers_are_refused():
    conversation = talk()
    assert conversation.receive(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000).startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("data", [b"hello", b"\x00\x01", b"PING\r\n", b"GETX", b"GET /\r\n"])
def test_what_is_no_http_comes_back(data):
    conversation = talk()
    assert conversation.receive(data) == data
    assert conversation.receive(b"GET / HTTP/1.1\r\n\r\n") == b"GET / HTTP/1.1\r\n\r\n"
    assert not conversation.finished


def test_first_bytes_may_be_either():
    conversation = talk()
    assert conversation.receive(b"PO") == b""
    assert conversation.undecided
    assert conversation.receive(b"NG") == b"PONG"
    conversation = talk()
    assert conversation.receive(b"GET") == b""
    assert conversation.echo() == b"GET"
    conversation = talk()
    conversation.receive(b"GE")
    assert conversation.eof() == b"GE"
    assert conversation.finished
