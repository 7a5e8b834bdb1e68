"""CronJob: makes Jobs at the times of a schedule.

https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/
A Job is named after the minute it is for, so a time is never served twice, whoever was restarted when. Of
several missed times only the last is made up for.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime, tzinfo
from typing import ClassVar
from zoneinfo import ZoneInfo

from podlane.errors import AlreadyExistsError, ConfigError
from podlane.lab.client import Obj
from podlane.lab.controllers import cron, facts, ownership
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.controllers.job import finish_of
from podlane.lab.informer import Key

SCHEDULED_AT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
_COMPONENT = "cronjob-controller"
_JOBS = "jobs.batch"
_MISSED_MANY, _RECENT_S = 100, 3600.0


class CronJobs(Controller):
    resource: ClassVar[str] = "cronjobs.batch"

    def __init__(self, context: Context) -> None:
        self.jobs = context.informer(_JOBS)
        super().__init__(context)

    def subscribe(self) -> None:
        self.jobs.subscribe(self._job_changed)

    def _job_changed(self, old: Obj | None, new: Obj | None) -> None:
        for job in (old, new):
            ref = ownership.controller_of(job) if job is not None else None
            if job is not None and ref is not None and ref.get("kind") == "CronJob":
                self.soon((job["metadata"]["namespace"], ref["name"]))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        owner = self.objects.get(name, namespace)
        if owner is None or facts.is_deleting(owner):
            return None
        uid = owner["metadata"]["uid"]
        jobs = [
            j
            for j in self.jobs.owned_by(uid)
            if (ref := ownership.controller_of(j)) is not None and ref["uid"] == uid
        ]
        jobs = await self._forget(owner, jobs)
        status = _status(owner, jobs)
        spec = owner["spec"]
        try:
            schedule = cron.parse(spec["schedule"])
            zone: tzinfo = ZoneInfo(spec["timeZone"]) if spec.get("timeZone") else UTC
        except (ConfigError, KeyError, ValueError, OSError) as error:
            self.context.events.warning("CronJob", owner, "UnparseableSchedule", str(error), _COMPONENT)
            await self.context.status(self.resource, owner, status)
            return None
        now_s = self.context.now()
        if not spec.get("suspend"):
            due = _due(owner, schedule, zone, now_s)
            if due is not None:
                status = await self._start(owner, jobs, status, due)
        await self.context.status(self.resource, owner, status)
        following = schedule.after(datetime.fromtimestamp(now_s, zone))
        return following.timestamp() - now_s if following and not spec.get("suspend") else None

    async def _start(self, owner: Obj, jobs: list[Obj], status: Obj, due_s: float) -> Obj:
        """A job for the time due_s, as the concurrency policy allows. The status afterwards."""
        spec, meta = owner["spec"], owner["metadata"]
        active = [j for j in jobs if finish_of(j) is None and not facts.is_deleting(j)]
        policy = spec.get("concurrencyPolicy") or "Allow"
        if active and policy == "Forbid":
            message = "Not starting job because prior execution is running and concurrency policy is Forbid"
            self.context.events.normal("CronJob", owner, "JobAlreadyActive", message, _COMPONENT)
            return status
        if policy == "Replace":
            for job in active:
                await self.context.delete(_JOBS, job)
            active = []
        template = copy.deepcopy(spec["jobTemplate"])
        body: Obj = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": f"{meta['name']}-{int(due_s) // 60}",
                "namespace": meta["namespace"],
                "labels": (template.get("metadata") or {}).get("labels") or {},
                "annotations": {
                    **((template.get("metadata") or {}).get("annotations") or {}),
                    SCHEDULED_AT: facts.timestamp(due_s),
                },
                "ownerReferences": [ownership.reference(owner, "CronJob")],
            },
            "spec": template["spec"],
        }
        try:
            job = await self.context.create(_JOBS, body, meta["namespace"])
        except AlreadyExistsError:
            return {**status, "lastScheduleTime": facts.timestamp(due_s)}
        message = f"Created job {job['metadata']['name']}"
        self.context.events.normal("CronJob", owner, "SuccessfulCreate", message, _COMPONENT)
        status = _status(owner, [*active, job])
        return {**status, "lastScheduleTime": facts.timestamp(due_s)}

    async def _forget(self, owner: Obj, jobs: list[Obj]) -> list[Obj]:
        """Finished jobs beyond the history limits go, oldest first."""
        gone: set[str] = set()
        for type_, limit in (
            ("Complete", owner["spec"].get("successfulJobsHistoryLimit", 3)),
            ("Failed", owner["spec"].get("failedJobsHistoryLimit", 1)),
        ):
            ended = [j for j in jobs if (end := finish_of(j)) is not None and end["type"] == type_]
            ended.sort(key=lambda j: (facts.created_s(j), j["metadata"]["name"]))
            for job in ended[: max(0, len(ended) - limit)]:
                await self.context.delete(_JOBS, job)
                gone.add(job["metadata"]["uid"])
        return [j for j in jobs if j["metadata"]["uid"] not in gone]


def _due(owner: Obj, schedule: cron.Schedule, zone: tzinfo, now_s: float) -> float | None:
    """The last scheduled time that is past and not yet served, unless startingDeadlineSeconds forgot it."""
    last = (owner.get("status") or {}).get("lastScheduleTime")
    since_s = facts.seconds(last) if last else facts.created_s(owner)
    limit_s = owner["spec"].get("startingDeadlineSeconds")
    if limit_s is not None:
        since_s = max(since_s, now_s - limit_s)
    found: float | None = None
    at = schedule.after(datetime.fromtimestamp(since_s, zone))
    missed = 0
    while at is not None and at.timestamp() <= now_s:
        found = at.timestamp()
        missed += 1
        if missed == _MISSED_MANY and found < now_s - _RECENT_S:
            # After a long pause: which time was the last one is found in the recent past, if there.
            at = datetime.fromtimestamp(now_s - _RECENT_S, zone)
        at = schedule.after(at)
    return found


def _status(owner: Obj, jobs: list[Obj]) -> Obj:
    old = owner.get("status") or {}
    status: Obj = {k: v for k, v in old.items() if k in ("lastScheduleTime", "lastSuccessfulTime")}
    active = [j for j in jobs if finish_of(j) is None and not facts.is_deleting(j)]
    if active:
        status["active"] = [
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "namespace": j["metadata"]["namespace"],
                "name": j["metadata"]["name"],
                "uid": j["metadata"]["uid"],
                "resourceVersion": j["metadata"]["resourceVersion"],
            }
            for j in sorted(active, key=lambda j: str(j["metadata"]["name"]))
        ]
        known = {r["uid"]: r for r in old.get("active") or ()}
        status["active"] = [known.get(r["uid"], r) for r in status["active"]]
    times = [t for j in jobs if (t := (j.get("status") or {}).get("completionTime"))]
    if times:
        status["lastSuccessfulTime"] = max([*times, status.get("lastSuccessfulTime") or ""])
    return status
