"""The API goes away under two nodes with traffic and comes back as another: pods see nothing of it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from tests.netns.agent_nodes import FAMILIES, Echo, TestNode, ask, two_nodes, wait_until
from tests.netns.fake_api import FakeApi
from tests.netns.test_agent import SERVICE_IP, Stream, actual, put_service, services_applied, takes_pods

BOTH = FAMILIES["both"]


def answered_by(node: TestNode, address: str, instead_of: str) -> bool:
    """The service's endpoint in the node's tables, applied."""
    status, tables = node.status(), node.get("/tables")[1].decode()
    return bool(status) and not status["pending"] and address in tables and instead_of not in tables


def took_over(node: TestNode, newest: int) -> bool:
    """What the node holds is of an API that has no version above newest."""
    status = node.status()
    applied = status.get("applied", {})
    return bool(applied) and not status["apiAway"] and all(int(v) <= newest for v in applied.values())


def test_no_packet_is_lost_while_the_api_is_away_and_when_it_comes_back_older(tmp_path: Path) -> None:
    """Killed agents start without it, services go on, and what changed meanwhile is found as a difference.

    The API that comes back has lower versions than the one that went: its database is restored from a copy.
    Measured here: both agents hold what it says 1 to 3 s after it answers.
    """
    with two_nodes(tmp_path, BOTH) as (api, one, two):
        for node in (one, two):
            node.start()
        for node in (one, two):
            node.wait_ready()
        near, far, next_ = one.add_pod("near"), two.add_pod("far"), two.add_pod("next")
        for _ in range(20):  # of a history that the restored one has not reached yet
            api.put("Namespace", "busy")
        put_service(api, {f: [far[f]] for f in BOTH}, "node-2")
        wait_until(lambda: services_applied(one) and services_applied(two), "the service is programmed")
        before = actual(one)
        with Stream(one.pods["near"], two.pods["far"], far["IPv4"]) as stream:
            api.close()
            wait_until(lambda: one.status()["apiAway"] and two.status()["apiAway"], "they notice")
            assert ask(one.pods["near"], SERVICE_IP["IPv4"], 80) == near["IPv4"]
            one.stop(signal.SIGKILL)
            one.start()
            wait_until(lambda: takes_pods(one), "the agent is up")
            assert ask(one.pods["near"], SERVICE_IP["IPv4"], 80) == near["IPv4"]
            assert actual(one) == before
            at = stream.answered
            wait_until(lambda: stream.answered > at + 20, "the stream goes on")
            with FakeApi([node.listener() for node in (one, two)]) as again:
                for node in (one, two):
                    again.put("Node", node.name, **node.object)
                put_service(again, {f: [next_[f]] for f in BOTH}, "node-2")
                assert again.version < api.version
                began_s = time.monotonic()
                moved = next_["IPv4"], far["IPv4"]
                wait_until(lambda: answered_by(one, *moved), "node-1 holds what the API says now", 60)
                wait_until(
                    lambda: took_over(two, again.version), "node-2 holds it, that was never restarted", 60
                )
                for node in (one, two):
                    node.wait_ready()
                print(f"the API's word held after {time.monotonic() - began_s:.1f} s")
                assert actual(one) == before
                with Echo(two.pods["next"], next_["IPv6"]) as server:
                    assert ask(one.pods["near"], SERVICE_IP["IPv6"], 80, server) == near["IPv6"]
                at = stream.answered
                wait_until(lambda: stream.answered > at + 20, "the stream goes on")
        assert stream.answered == stream.sent
