"""Job: pods that run to an end, as many times as spec.completions says.

https://kubernetes.io/docs/concepts/workloads/controllers/job/
Counts come from the pods that are there (of an Indexed job also from status.completedIndexes): finished
pods that somebody deletes are run again. Not here: podFailurePolicy, successPolicy, backoffLimitPerIndex.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from podlane.errors import ApiError
from podlane.lab.client import Obj
from podlane.lab.controllers import facts, ownership
from podlane.lab.controllers.context import Context, Controller
from podlane.lab.informer import Key, key_of
from podlane.model import selectors
from podlane.model.selectors import Selector

INDEX = "batch.kubernetes.io/job-completion-index"
UID_LABEL, NAME_LABEL = "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"
MANAGER = "kubernetes.io/job-controller"
_COMPONENT = "job-controller"
BACKOFF_FIRST_S, BACKOFF_LAST_S = 10.0, 360.0


class _Count(NamedTuple):
    """Pods of a job by what became of them. terminating ones are in no other list."""

    active: list[Obj]
    terminating: list[Obj]
    succeeded: list[Obj]
    failed: list[Obj]


class Jobs(Controller):
    resource: ClassVar[str] = "jobs.batch"
    settle_s = 0.005

    def __init__(self, context: Context) -> None:
        self.pods = context.informer("pods")
        super().__init__(context)

    def subscribe(self) -> None:
        self.pods.subscribe(self._pod_changed)

    def _pod_changed(self, old: Obj | None, new: Obj | None) -> None:
        for pod in (old, new):
            ref = ownership.controller_of(pod) if pod is not None else None
            if pod is not None and ref is not None and ref.get("kind") == "Job":
                self.soon((pod["metadata"]["namespace"], ref["name"]))

    async def reconcile(self, key: Key) -> float | None:
        namespace, name = key
        job = self.objects.get(name, namespace)
        if job is None or job["spec"].get("managedBy", MANAGER) != MANAGER:
            return None
        if (end := finish_of(job)) is not None:
            return await self._expire(job, end)
        if facts.is_deleting(job):
            return None
        pods = await ownership.claim(self.context, job, "Job", self.resource, "pods", _selector(job))
        return await self._step(job, _sort(pods))

    async def _expire(self, job: Obj, end: Obj) -> float | None:
        """ttlSecondsAfterFinished."""
        ttl_s = job["spec"].get("ttlSecondsAfterFinished")
        if ttl_s is None or facts.is_deleting(job):
            return None
        left_s: float = facts.seconds(end.get("lastTransitionTime")) + ttl_s - self.context.now()
        if left_s > 0:
            return left_s
        await self.context.delete(self.resource, job, propagation="Foreground")
        return None

    async def _step(self, job: Obj, count: _Count) -> float | None:
        spec, now_s = job["spec"], self.context.now()
        old = job.get("status") or {}
        suspended = bool(spec.get("suspend"))
        status: Obj = {k: v for k, v in old.items() if k in ("startTime", "conditions", "completedIndexes")}
        status = self._suspension(job, status, suspended, now_s)
        if suspended:
            status.pop("startTime", None)
        else:
            status.setdefault("startTime", facts.timestamp(now_s))
        done = _completed_indexes(job, count)
        succeeded = len(done) if _indexed(job) else max(len(count.succeeded), old.get("succeeded") or 0)
        failed = max(len(count.failed), old.get("failed") or 0)
        waits: list[float] = []
        verdict = _verdict(job, count, succeeded, failed, status.get("startTime"), now_s)
        active = count.active
        failure: ApiError | None = None
        try:
            if verdict is not None or suspended:
                active = await self._delete(job, count.active, len(count.active))
            else:
                active, wait_s = await self._balance(job, count, succeeded, done)
                waits += [wait_s] if wait_s is not None else []
        except ApiError as error:
            failure = error
        limit_s = spec.get("activeDeadlineSeconds")
        if limit_s is not None and verdict is None and not suspended:
            waits.append(facts.seconds(status["startTime"]) + limit_s - now_s)
        left = {_uid(p) for p in count.active} - {_uid(p) for p in active}
        terminating = len(count.terminating) + len(left)
        await self._write(job, status, verdict, active, terminating, (succeeded, failed), done)
        if failure is not None:
            raise failure
        return max(0.0, min(waits)) if waits else None

    # --- pods ---

    async def _balance(
        self, job: Obj, count: _Count, succeeded: int, done: set[int]
    ) -> tuple[list[Obj], float | None]:
        """(active pods now, seconds until failed ones are replaced)"""
        spec = job["spec"]
        parallelism = spec.get("parallelism", 1)
        completions = spec.get("completions")
        if completions is None:
            wanted = len(count.active) if succeeded else parallelism
        else:
            wanted = min(completions - succeeded, parallelism)
        wanted = max(0, min(wanted, parallelism))
        if len(count.active) > wanted:
            return await self._delete(job, count.active, len(count.active) - wanted), None
        missing = wanted - len(count.active)
        if not missing:
            return count.active, None
        if (wait_s := self._backoff_s(count)) > 0:
            return count.active, wait_s
        made = list(count.active)
        if not _indexed(job):
            for _ in range(missing):
                made.append(await self._create(job, None))
            return made, None
        # A terminating pod keeps its index: two of one index never run at once.
        busy = {index_of(p) for p in (*count.active, *count.terminating)}
        free = [i for i in range(completions or 0) if i not in done and i not in busy]
        for index in free[:missing]:
            made.append(await self._create(job, index))
        return made, None

    def _backoff_s(self, count: _Count) -> float:
        """10 s after the first failure, 20 s after the second ... up to 6 minutes; success resets it."""
        last_success = max(map(_finished_s, count.succeeded), default=0.0)
        recent = [f for f in map(_finished_s, count.failed) if f > last_success]
        if not recent:
            return 0.0
        delay_s: float = min(BACKOFF_FIRST_S * 2.0 ** (min(len(recent), 16) - 1), BACKOFF_LAST_S)
        return max(recent) + delay_s - self.context.now()

    async def _delete(self, job: Obj, active: list[Obj], number: int) -> list[Obj]:
        order = sorted(active, key=lambda p: facts.deletion_order(p, 0))
        for pod in order[:number]:
            await self.context.delete("pods", pod)
            message = f"Deleted pod: {pod['metadata']['name']}"
            self.context.events.normal("Job", job, "SuccessfulDelete", message, _COMPONENT)
        return order[number:]

    async def _create(self, job: Obj, index: int | None) -> Obj:
        meta = job["metadata"]
        labels = {
            UID_LABEL: meta["uid"],
            NAME_LABEL: meta["name"],
            "controller-uid": meta["uid"],
            "job-name": meta["name"],
        }
        if job["spec"].get("manualSelector"):
            labels = {}
        annotations, prefix = {}, ""
        if index is not None:
            labels[INDEX] = annotations[INDEX] = str(index)
            prefix = f"{meta['name']}-{index}-"
        pod = ownership.pod_from(
            job["spec"]["template"], job, "Job", prefix=prefix, labels=labels, annotations=annotations
        )
        if index is not None:
            pod["spec"].setdefault("hostname", f"{meta['name']}-{index}")
            _add_index(pod["spec"])
        try:
            made = await self.context.create("pods", pod, meta["namespace"])
        except ApiError as error:
            self.context.events.warning("Job", job, "FailedCreate", f"Error creating: {error}", _COMPONENT)
            raise
        message = f"Created pod: {made['metadata']['name']}"
        self.context.events.normal("Job", job, "SuccessfulCreate", message, _COMPONENT)
        return made

    # --- status ---

    def _suspension(self, job: Obj, status: Obj, suspended: bool, now_s: float) -> Obj:
        was = facts.condition(job, "Suspended")
        if suspended == (was is not None and was.get("status") == "True"):
            return status
        reason, word = ("JobSuspended", "Job suspended") if suspended else ("JobResumed", "Job resumed")
        conditions = facts.with_condition(
            status.get("conditions") or (), "Suspended", str(suspended), reason, word, now_s
        )
        self.context.events.normal("Job", job, reason.removeprefix("Job"), word, _COMPONENT)
        return {**status, "conditions": conditions}

    async def _write(
        self,
        job: Obj,
        status: Obj,
        verdict: tuple[str, str, str] | None,
        active: list[Obj],
        terminating: int,
        totals: tuple[int, int],
        done: set[int],
    ) -> None:
        now_s = self.context.now()
        counts: dict[str, Any] = {
            "active": len(active),
            "succeeded": totals[0],
            "failed": totals[1],
        }
        status |= {k: v for k, v in counts.items() if v}
        status |= {"ready": sum(map(facts.is_ready, active)), "terminating": terminating}
        status["uncountedTerminatedPods"] = {}
        if _indexed(job) and done:
            status["completedIndexes"] = ranges(done)
        if verdict is not None:
            type_, reason, message = verdict
            target = "SuccessCriteriaMet" if type_ == "Complete" else "FailureTarget"
            conditions = facts.with_condition(
                status.get("conditions") or (), target, "True", reason, message, now_s
            )
            if not terminating and not active:
                conditions = facts.with_condition(conditions, type_, "True", reason, message, now_s)
                if type_ == "Complete":
                    status["completionTime"] = facts.timestamp(now_s)
                    self.context.events.normal("Job", job, "Completed", "Job completed", _COMPONENT)
                else:
                    self.context.events.warning("Job", job, reason, message, _COMPONENT)
            status["conditions"] = conditions
        await self.context.status(self.resource, job, status)


def finish_of(job: Obj) -> Obj | None:
    """The condition that ended the job."""
    for type_ in ("Complete", "Failed"):
        found = facts.condition(job, type_)
        if found is not None and found.get("status") == "True":
            return found
    return None


def _verdict(
    job: Obj, count: _Count, succeeded: int, failed: int, start: str | None, now_s: float
) -> tuple[str, str, str] | None:
    """(Complete or Failed, reason, message) once it is decided."""
    for type_, target in (("Complete", "SuccessCriteriaMet"), ("Failed", "FailureTarget")):
        if (found := facts.condition(job, target)) is not None and found.get("status") == "True":
            return type_, found.get("reason", ""), found.get("message", "")
    spec = job["spec"]
    completions = spec.get("completions")
    enough = succeeded > 0 and not count.active
    complete = enough if completions is None else succeeded >= completions
    if complete:
        return "Complete", "CompletionsReached", "Reached expected number of succeeded pods"
    in_place = 0
    if (spec["template"].get("spec") or {}).get("restartPolicy") == "OnFailure":
        in_place = sum(map(facts.restarts, count.active))
    if failed + in_place > spec.get("backoffLimit", 6):
        return "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    limit_s = spec.get("activeDeadlineSeconds")
    if limit_s is not None and start and not spec.get("suspend") and facts.seconds(start) + limit_s <= now_s:
        return "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
    return None


def _selector(job: Obj) -> Selector:
    """The API gives every job a selector for its own uid."""
    if job["spec"].get("selector"):
        return ownership.selector_of(job)
    return selectors.from_labels({UID_LABEL: job["metadata"]["uid"]})


def _sort(pods: list[Obj]) -> _Count:
    count = _Count([], [], [], [])
    for pod in sorted(pods, key=key_of):
        match facts.phase(pod):
            case "Succeeded":
                count.succeeded.append(pod)
            case "Failed":
                count.failed.append(pod)
            case _:
                (count.terminating if facts.is_deleting(pod) else count.active).append(pod)
    return count


def _uid(pod: Obj) -> str:
    return str(pod["metadata"]["uid"])


def _indexed(job: Obj) -> bool:
    return bool(job["spec"].get("completionMode") == "Indexed")


def index_of(pod: Obj) -> int | None:
    text = facts.annotations_of(pod).get(INDEX, "")
    return int(text) if text.isdigit() else None


def _completed_indexes(job: Obj, count: _Count) -> set[int]:
    if not _indexed(job):
        return set()
    done = parse_ranges((job.get("status") or {}).get("completedIndexes") or "")
    done |= {i for p in count.succeeded if (i := index_of(p)) is not None}
    return {i for i in done if i < (job["spec"].get("completions") or 0)}


def ranges(numbers: set[int]) -> str:
    """status.completedIndexes: {0, 1, 2, 5} -> "0-2,5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, p)) for p in parts)


def parse_ranges(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _finished_s(pod: Obj) -> float:
    """When its last container ended, as far as it is known."""
    times = [
        facts.seconds(((s.get("state") or {}).get("terminated") or {}).get("finishedAt"))
        for s in (pod.get("status") or {}).get("containerStatuses") or ()
    ]
    return max(times, default=0.0) or facts.created_s(pod)


def _add_index(spec: Obj) -> None:
    """JOB_COMPLETION_INDEX in every container that does not set it itself."""
    source = {"fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}}
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        env = container.get("env") or []
        if all(e.get("name") != "JOB_COMPLETION_INDEX" for e in env):
            container["env"] = [*env, {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}]
