"""Jobs and CronJobs, over the real API with pretended kubelets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from podlane.errors import ConfigError
from podlane.lab.client import Obj
from podlane.lab.controllers import cron, facts
from podlane.lab.controllers.job import index_of, parse_ranges, ranges
from tests.unit.controller_lab import Cluster, cluster, name, template

JOBS, CRON = "jobs.batch", "cronjobs.batch"


def run(story: Callable[[Cluster], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with cluster(**options) as lab:
            await story(lab)

    asyncio.run(main())


def job(name_: str = "work", **spec: Any) -> Obj:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name_},
        "spec": {"template": template({}, restartPolicy="Never"), **spec},
    }


def ended(lab: Cluster, which: str = "work") -> str:
    """Complete, Failed, or nothing yet."""
    for type_ in ("Complete", "Failed"):
        found = facts.condition(lab.one(JOBS, which), type_)
        if found is not None and found["status"] == "True":
            return type_
    return ""


def status(lab: Cluster, which: str = "work") -> Obj:
    found: Obj = lab.one(JOBS, which)["status"]
    return found


def test_completions_with_parallelism() -> None:
    async def story(lab: Cluster) -> None:
        running: list[int] = []
        lab.server.store.subscribe(lambda events: running.append(len(lab.pods())))
        await lab.create(JOBS, job(completions=5, parallelism=2))
        await lab.until(lambda: len(lab.pods()) == 2)
        lab.exit = lambda p: "Succeeded"
        await lab.report()
        await lab.until(lambda: ended(lab))
        await lab.settled()
        assert ended(lab) == "Complete"
        assert max(running) == 2
        assert len(lab.all("pods")) == 5
        found = status(lab)
        assert (found["succeeded"], found.get("active"), found.get("failed")) == (5, None, None)
        assert found["completionTime"] >= found["startTime"]
        for each in lab.all("pods"):
            labels = each["metadata"]["labels"]
            assert labels["batch.kubernetes.io/job-name"] == labels["job-name"] == "work"
            uid = lab.one(JOBS, "work")["metadata"]["uid"]
            assert labels["batch.kubernetes.io/controller-uid"] == uid

    run(story)


def test_indexed_jobs_do_every_index_once() -> None:
    async def story(lab: Cluster) -> None:
        lab.exit = lambda p: "Succeeded"
        await lab.create(JOBS, job(completions=4, parallelism=3, completionMode="Indexed"))
        await lab.until(lambda: ended(lab) == "Complete")
        pods = lab.all("pods")
        assert sorted(index_of(p) or 0 for p in pods) == [0, 1, 2, 3]
        for each in pods:
            index = index_of(each)
            assert name(each).startswith(f"work-{index}-")
            assert each["spec"]["hostname"] == f"work-{index}"
            (env,) = each["spec"]["containers"][0]["env"]
            assert env["name"] == "JOB_COMPLETION_INDEX"
            assert env["valueFrom"]["fieldRef"]["fieldPath"] == (
                "metadata.labels['batch.kubernetes.io/job-completion-index']"
            )
        assert status(lab)["completedIndexes"] == "0-3"

    run(story)


def test_backoff_limit() -> None:
    async def story(lab: Cluster) -> None:
        lab.exit = lambda p: "Failed"
        await lab.create(JOBS, job(backoffLimit=1))
        await lab.until(lambda: len(lab.all("pods")) == 1 and status(lab).get("failed") == 1)
        await lab.settled()
        # the first replacement waits 10 s
        assert len(lab.all("pods")) == 1
        lab.clock.ahead_s = 11
        await lab.edit(JOBS, "work", {"metadata": {"labels": {"look": "again"}}})
        await lab.until(lambda: ended(lab))
        assert ended(lab) == "Failed"
        found = facts.condition(lab.one(JOBS, "work"), "Failed")
        assert found is not None
        assert found["reason"] == "BackoffLimitExceeded"
        assert len(lab.all("pods")) == 2

    run(story)


def test_active_deadline_ends_running_pods() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(JOBS, job(activeDeadlineSeconds=30))
        await lab.until(lambda: lab.pods() and facts.is_ready(lab.pods()[0]))
        lab.clock.ahead_s = 31
        await lab.edit(JOBS, "work", {"metadata": {"labels": {"look": "again"}}})
        await lab.until(lambda: ended(lab) == "Failed" and not lab.all("pods"))
        found = facts.condition(lab.one(JOBS, "work"), "Failed")
        assert found is not None
        assert found["reason"] == "DeadlineExceeded"

    run(story)


def test_suspend_and_resume() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(JOBS, job(suspend=True))
        await lab.settled()
        assert not lab.all("pods")
        assert "startTime" not in status(lab)
        await lab.edit(JOBS, "work", {"spec": {"suspend": False}})
        await lab.until(lambda: lab.pods())
        await lab.edit(JOBS, "work", {"spec": {"suspend": True}})
        await lab.until(lambda: not lab.all("pods"))
        found = facts.condition(lab.one(JOBS, "work"), "Suspended")
        assert found is not None
        assert (found["status"], found["reason"]) == ("True", "JobSuspended")

    run(story)


def test_ttl_after_finished() -> None:
    async def story(lab: Cluster) -> None:
        lab.exit = lambda p: "Succeeded"
        await lab.create(JOBS, job(ttlSecondsAfterFinished=0))
        await lab.until(lambda: not lab.all(JOBS) and not lab.all("pods"))

    run(story)


def test_work_queue_jobs_end_when_one_succeeds_and_none_runs() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(JOBS, job(parallelism=3, completions=None))
        await lab.until(lambda: len(lab.pods()) == 3)
        first = name(lab.pods()[0])
        lab.exit = lambda p: "Succeeded" if name(p) == first else ""
        await lab.report()
        await lab.until(lambda: status(lab).get("succeeded") == 1)
        await lab.settled()
        assert len(lab.all("pods")) == 3
        assert not ended(lab)
        lab.exit = lambda p: "Succeeded"
        await lab.report()
        await lab.until(lambda: ended(lab) == "Complete")
        assert len(lab.all("pods")) == 3

    run(story)


@pytest.mark.parametrize("seed", range(4))
def test_restarts_run_nothing_twice(seed: int) -> None:
    async def story(lab: Cluster) -> None:
        lab.exit = lambda p: "Succeeded"
        await lab.create(JOBS, job(completions=6, parallelism=2, completionMode="Indexed"))
        for round_ in range(8):
            for _ in range((seed * 13 + round_ * 7) % 31):
                await asyncio.sleep(0)
            await lab.manager.stop()
            lab.start_manager()
        await lab.until(lambda: ended(lab) == "Complete")
        assert sorted(index_of(p) or 0 for p in lab.all("pods")) == list(range(6))

    run(story)


def test_ranges_of_indexes() -> None:
    for numbers, text in (({0, 1, 2, 5}, "0-2,5"), (set(), ""), ({7}, "7"), ({1, 2}, "1-2")):
        assert ranges(numbers) == text
        assert parse_ranges(text) == numbers


# --- CronJob --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "after", "expected"),
    [
        ("*/15 * * * *", "2026-01-01T00:00:00", "2026-01-01T00:15:00"),
        ("0 9-17/4 * * mon-fri", "2026-01-02T17:30:00", "2026-01-05T09:00:00"),
        ("30 2 29 2 *", "2026-01-01T00:00:00", "2028-02-29T02:30:00"),
        ("0 0 13 * 5", "2026-02-01T00:00:00", "2026-02-06T00:00:00"),
        ("@hourly", "2026-01-01T00:59:59", "2026-01-01T01:00:00"),
        ("0 0 * * 7", "2026-01-01T00:00:00", "2026-01-04T00:00:00"),
        ("5,10 0 1 jan *", "2026-01-01T00:05:00", "2026-01-01T00:10:00"),
    ],
)
def test_schedules(schedule: str, after: str, expected: str) -> None:
    at = datetime.fromisoformat(after).replace(tzinfo=UTC)
    assert cron.parse(schedule).after(at) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "schedule", ["", "* * * *", "60 * * * *", "* * * foo *", "5-1 * * * *", "*/0 * * * *"]
)
def test_bad_schedules_are_refused(schedule: str) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        cron.parse(schedule)


def test_a_schedule_that_never_comes() -> None:
    assert cron.parse("0 0 30 2 *").after(datetime(2026, 1, 1, tzinfo=UTC)) is None


def test_cron_jobs_run_once_a_time_also_across_restarts() -> None:
    async def story(lab: Cluster) -> None:
        lab.exit = lambda p: "Succeeded"
        body = {
            "apiVersion": "batch/v1",
            "kind": "CronJob",
            "metadata": {"name": "tick"},
            "spec": {
                "schedule": "* * * * *",
                "successfulJobsHistoryLimit": 2,
                "jobTemplate": {"spec": job()["spec"]},
            },
        }
        made = await lab.create(CRON, body)
        await lab.settled()
        names: set[str] = set()
        for minute in range(1, 5):
            await lab.manager.stop()
            lab.clock.ahead_s = 60 * minute
            lab.start_manager()
            want = int(facts.seconds(made["metadata"]["creationTimestamp"]) + lab.clock.ahead_s) // 60
            await lab.until(lambda w=want: any(int(name(j).split("-")[1]) >= w for j in lab.all(JOBS)))
            await lab.until(lambda: all(ended(lab, name(j)) for j in lab.all(JOBS)))
            names |= {name(j) for j in lab.all(JOBS)}
            await lab.settled()
        assert 4 <= len(names) <= 5
        await lab.until(lambda: len(lab.all(JOBS)) == 2)
        found = lab.one(CRON, "tick")["status"]
        assert "lastScheduleTime" in found
        assert "lastSuccessfulTime" in found
        (owner,) = lab.all(JOBS)[0]["metadata"]["ownerReferences"]
        assert owner["kind"] == "CronJob"

    run(story)
