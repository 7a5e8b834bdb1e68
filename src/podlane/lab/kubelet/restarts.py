"""Whether a container that has ended is started again, and how soon. Pure."""

from __future__ import annotations

BACKOFF_FIRST_S, BACKOFF_LAST_S = 1.0, 30.0
BACKOFF_FORGIVEN_S = 60.0


def again(policy: str, kind: str, exit_code: int) -> bool:
    """policy: the pod's restartPolicy; kind: main, init, sidecar or ephemeral."""
    if kind == "sidecar":
        policy = "Always"
    elif kind == "init":
        policy = "Never" if policy == "Never" else "OnFailure"
    elif kind == "ephemeral":
        policy = "Never"
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


class Backoff:
    """The first restart is at once, later ones after 1 s, 2 s, 4 s ... 30 s."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def next_s(self) -> float:
        delay_s = self._next_s
        self._next_s = min(max(2 * delay_s, BACKOFF_FIRST_S), BACKOFF_LAST_S)
        return delay_s

    def ran(self, ran_s: float) -> None:
        """A container that ran long enough begins anew."""
        if ran_s >= BACKOFF_FORGIVEN_S:
            self._next_s = 0.0
