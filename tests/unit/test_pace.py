"""So many at once, so many a second in the long run."""

from __future__ import annotations

from podlane.agent.pace import Pace


def run(pace: Pace, wanted_s: list[float]) -> list[float]:
    """When each is done that is wanted at these times, one after the other."""
    done_s, now_s = [], 0.0
    for at_s in wanted_s:
        now_s = max(now_s, at_s, pace.due_s())
        pace.spend(now_s)
        done_s.append(round(now_s, 6))
    return done_s


def test_the_first_ones_are_done_at_once_and_the_others_in_time() -> None:
    assert run(Pace(10, 3), [1.0] * 6) == [1.0, 1.0, 1.0, 1.1, 1.2, 1.3]


def test_after_a_pause_so_many_may_come_at_once_again() -> None:
    assert run(Pace(10, 2), [0.0, 0.0, 0.0, 5.0, 5.0, 5.0]) == [0.0, 0.0, 0.1, 5.0, 5.0, 5.1]


def test_what_is_rarer_is_never_late() -> None:
    wanted_s = [number * 0.11 for number in range(50)]
    assert run(Pace(10, 1), wanted_s) == [round(each, 6) for each in wanted_s]
