"""What is written under a prefix of etcd, in order and complete, on a thread of its own.

    POST /v3/watch ──a line of JSON a revision──> Follower ──queue──> the store's own thread

When a member dies or has lost the others, another one is asked, from the revision after the last one seen; so
nothing is missed and nothing comes twice. Only what has been compacted meanwhile cannot be had: `Lost`.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from podlane.lab.api.etcd_client import EtcdAwayError, EtcdClient, EtcdError, KeyValue, after, decoded

SILENCE_S = 30.0
"""A stream that says nothing for so long is opened anew: its member may hang."""

_CONNECT_S = 2.0
_PAUSES_S = (0.02, 0.1, 0.5)


class Change(Struct):
    """type: PUT or DELETE. kv.mod_revision: when. prev_kv: what was there; None when it is not known."""

    kv: KeyValue
    type: str = "PUT"
    prev_kv: KeyValue | None = None


class Lost(Struct):
    """History before revision is gone, and with it changes nobody has seen: read everything anew."""

    revision: int


class _Result(Struct):
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    events: list[Change] = []


class _Line(Struct):
    result: _Result | None = None


class Follower:
    """wake: called, on the follower's thread, after something was put into the queue."""

    def __init__(self, client: EtcdClient, prefix: bytes, wake: Callable[[], None]) -> None:
        self._client, self._prefix, self._next, self._wake = client, prefix, 0, wake
        self._queue: deque[list[Change] | Lost] = deque()
        self._arrived = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="etcd watch", daemon=True)

    def start(self, revision: int) -> None:
        """revision: the first one that is wanted."""
        self._next = revision
        self._thread.start()

    def take(self) -> list[list[Change] | Lost]:
        """All that waits, oldest first."""
        with self._arrived:
            found = list(self._queue)
            self._queue.clear()
            return found

    def await_revision(self, revision: int, timeout_s: float) -> bool:
        """Whether the queue holds everything up to revision, one at which something was written here."""
        deadline_s = time.monotonic() + timeout_s
        with self._arrived:
            while self._next <= revision and not any(isinstance(each, Lost) for each in self._queue):
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    return False
                self._arrived.wait(left_s)
            return True

    def reconnect(self) -> None:
        """Ask another member."""
        self._client.interrupt()

    def close(self) -> None:
        self._stopped = True
        self._client.interrupt()
        if self._thread.is_alive():
            self._thread.join(2 * _CONNECT_S)

    def _run(self) -> None:
        failures = 0
        while not self._stopped:
            try:
                self._follow()
                failures = 0
            except (OSError, ValueError, http.client.HTTPException, EtcdAwayError, EtcdError):
                failures += 1
            if self._client.connected:  # or else it has turned to another member already
                self._client.leave()
            if not self._stopped:
                time.sleep(_PAUSES_S[min(failures, len(_PAUSES_S)) - 1] if failures else 0)
        self._client.close()

    def _follow(self) -> None:
        request = {
            "key": self._prefix,
            "range_end": after(self._prefix),
            "start_revision": str(self._next),
            "prev_kv": True,
        }
        response = self._client.open("watch", {"create_request": request}, _CONNECT_S)
        self._client.set_timeout(SILENCE_S)
        while not self._stopped:
            line = response.readline()
            if not line:
                return
            result = decoded(line, _Line).result
            if result is None or (result.canceled and not result.compact_revision):
                return
            if result.compact_revision:
                self._push(Lost(result.compact_revision), result.compact_revision)
                return  # this one is over; the next one begins there
            if result.events:
                self._push(result.events, result.events[-1].kv.mod_revision + 1)

    def _push(self, item: list[Change] | Lost, following: int) -> None:
        with self._arrived:
            self._queue.append(item)
            self._next = following
            self._arrived.notify_all()
        self._wake()
