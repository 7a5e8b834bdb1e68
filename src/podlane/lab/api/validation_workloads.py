"""Deployments, ReplicaSets, DaemonSets, StatefulSets, Jobs, CronJobs: pkg/apis/{apps,batch}. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from podlane.errors import ConfigError
from podlane.lab.api import validation_field as field
from podlane.lab.api.validation_rules import (
    Errors,
    Rule,
    amount_or_percent,
    between,
    immutable,
    join,
    not_negative,
    one_of,
)
from podlane.lab.client import Obj
from podlane.model import selectors

APPS = "io.k8s.api.apps.v1."
BATCH = "io.k8s.api.batch.v1."
CORE = "io.k8s.api.core.v1."


def _template_labels(spec: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = spec.get("template", {}).get("metadata", {}).get("labels", {})
    return labels


def _selected(spec: dict[str, Any], path: str, kind: str) -> Errors:
    """The selector is there, not empty, and selects what the template makes."""
    selector = spec.get("selector")
    here = join(path, "selector")
    if selector is None:
        yield field.required(here)
        return
    if not selector.get("matchLabels") and not selector.get("matchExpressions"):
        yield field.invalid(here, selector, f"empty selector is invalid for {kind}")
        return
    try:
        matches = selectors.from_dict(selector).matches(_template_labels(spec))
    except ConfigError:
        return  # the rules for LabelSelector say what is wrong
    if not matches:
        why = "`selector` does not match template `labels`"
        yield field.invalid(join(path, "template.metadata.labels"), _template_labels(spec), why)


def _runs_always(spec: dict[str, Any], path: str, kind: str) -> Errors:
    pod = spec.get("template", {}).get("spec", {})
    here = join(path, "template.spec")
    policy = pod.get("restartPolicy")
    if policy and policy != "Always":
        yield field.not_supported(f"{here}.restartPolicy", policy, ["Always"])
    if pod.get("activeDeadlineSeconds") is not None:
        yield field.forbidden(
            f"{here}.activeDeadlineSeconds", f"activeDeadlineSeconds in {kind} is not Supported"
        )


def _workload(name: str, kind: str) -> Callable[[dict[str, Any], str], Errors]:
    def check(spec: dict[str, Any], path: str) -> Errors:
        yield from _selected(spec, path, name)
        yield from _runs_always(spec, path, kind)

    return check


def deployment_spec(spec: dict[str, Any], path: str) -> Errors:
    yield from _workload("deployment", "ReplicaSet")(spec, path)
    deadline, ready = spec.get("progressDeadlineSeconds"), spec.get("minReadySeconds", 0)
    if deadline is not None and deadline <= ready:
        yield field.invalid(
            join(path, "progressDeadlineSeconds"), deadline, "must be greater than minReadySeconds"
        )


def deployment_strategy(value: dict[str, Any], path: str) -> Errors:
    rolling = value.get("rollingUpdate")
    if value.get("type") == "Recreate" and rolling is not None:
        why = "may not be specified when strategy `type` is 'Recreate'"
        yield field.forbidden(join(path, "rollingUpdate"), why)


def rolling_update(value: dict[str, Any], path: str) -> Errors:
    surge, unavailable = value.get("maxSurge"), value.get("maxUnavailable")
    if _is_zero(surge) and _is_zero(unavailable):
        here = join(path, "maxUnavailable")
        yield field.invalid(here, unavailable, "may not be 0 when `maxSurge` is 0")
    if _percent(unavailable) > 100:
        yield field.invalid(join(path, "maxUnavailable"), unavailable, "must not be greater than 100%")


def rolling_daemons(value: dict[str, Any], path: str) -> Errors:
    surge, unavailable = _is_zero(value.get("maxSurge")), _is_zero(value.get("maxUnavailable"))
    if surge and unavailable:
        here = join(path, "maxUnavailable")
        yield field.required(here, "cannot be 0 when maxSurge is 0")
    elif not surge and not unavailable:
        why = "may not be set when maxUnavailable is non-zero"
        yield field.invalid(join(path, "maxSurge"), value["maxSurge"], why)


def _is_zero(value: Any) -> bool:
    return value is None or str(value).removesuffix("%").strip("0") == ""


def _percent(value: Any) -> int:
    match = re.fullmatch(r"([0-9]+)%", value) if isinstance(value, str) else None
    return int(match[1]) if match else 0


def replication_controller_spec(spec: dict[str, Any], path: str) -> Errors:
    selector = spec.get("selector", {})
    if not selector:
        yield field.required(join(path, "selector"))
    labels = _template_labels(spec)
    if any(labels.get(k) != v for k, v in selector.items()):
        why = "`selector` does not match template `labels`"
        yield field.invalid(join(path, "template.metadata.labels"), labels, why)
    yield from _runs_always(spec, path, "ReplicationController")


def job_spec(spec: dict[str, Any], path: str) -> Errors:
    """The selector is made by the server unless manualSelector is set (defaults.py)."""
    policy = spec.get("template", {}).get("spec", {}).get("restartPolicy")
    if policy == "Always":
        here = join(path, "template.spec.restartPolicy")
        yield field.required(here, 'valid values: "OnFailure", "Never"')
    if spec.get("completionMode") == "Indexed" and spec.get("completions") is None:
        yield field.required(join(path, "completions"), "when completion mode is Indexed")


_SCHEDULE_WORDS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def schedule(value: Any, path: str) -> Errors:
    """Five fields of a crontab, or a word like @hourly."""
    if value in _SCHEDULE_WORDS or re.fullmatch(r"@every (\d+(\.\d+)?(ns|us|ms|s|m|h))+", value):
        return
    if "TZ" in value:
        yield field.invalid(path, value, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
    elif len(value.split()) != 5:
        yield field.invalid(
            path, value, f"expected exactly 5 fields, found {len(value.split())}: {value.split()}"
        )
    elif not re.fullmatch(r"[-0-9A-Za-z*/,? \t]+", value):
        yield field.invalid(path, value, "failed to parse the schedule")


# --- updates --------------------------------------------------------------------------------------


def selector_update(new: Obj, old: Obj) -> Errors:
    after, before = new.get("spec", {}), old.get("spec", {})
    yield from immutable(after.get("selector"), before.get("selector"), "spec.selector")


def job_update(new: Obj, old: Obj) -> Errors:
    after, before = new.get("spec", {}), old.get("spec", {})
    yield from selector_update(new, old)
    for key in ("completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"):
        yield from immutable(after.get(key), before.get(key), f"spec.{key}")
    if after.get("completionMode") != "Indexed":
        yield from immutable(after.get("completions"), before.get("completions"), "spec.completions")
    # A suspended Job that has not started may be told where its pods go (KEP-2926).
    if not (before.get("suspend") and not old.get("status", {}).get("startTime")):
        yield from immutable(after.get("template"), before.get("template"), "spec.template")


_STATEFUL_MAY_CHANGE = (
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
)


def stateful_set_update(new: Obj, old: Obj) -> Errors:
    after, before = new.get("spec", {}), old.get("spec", {})
    keys = (after.keys() | before.keys()) - set(_STATEFUL_MAY_CHANGE)
    if any(after.get(k) != before.get(k) for k in keys):
        listed = ", ".join(f"'{k}'" for k in _STATEFUL_MAY_CHANGE[:-1])
        why = (
            f"updates to statefulset spec for fields other than {listed} and 'minReadySeconds' are forbidden"
        )
        yield field.forbidden("spec", why)


# --- tables ---------------------------------------------------------------------------------------

_replicas: dict[str, Rule] = {"replicas": not_negative, "minReadySeconds": not_negative}
_revisions: dict[str, Rule] = {"minReadySeconds": not_negative, "revisionHistoryLimit": not_negative}
_rolling: dict[str, Rule] = {"maxSurge": amount_or_percent, "maxUnavailable": amount_or_percent}

RULES: dict[str, dict[str, Rule]] = {
    CORE + "ReplicationControllerSpec": _replicas,
    APPS + "DeploymentSpec": {**_replicas, **_revisions, "progressDeadlineSeconds": not_negative},
    APPS + "DeploymentStrategy": {"type": one_of("Recreate", "RollingUpdate")},
    APPS + "RollingUpdateDeployment": _rolling,
    APPS + "ReplicaSetSpec": _replicas,
    APPS + "DaemonSetSpec": _revisions,
    APPS + "DaemonSetUpdateStrategy": {"type": one_of("OnDelete", "RollingUpdate")},
    APPS + "RollingUpdateDaemonSet": _rolling,
    APPS + "StatefulSetSpec": {
        **_replicas,
        **_revisions,
        "podManagementPolicy": one_of("OrderedReady", "Parallel"),
    },
    APPS + "StatefulSetUpdateStrategy": {"type": one_of("OnDelete", "RollingUpdate")},
    APPS + "RollingUpdateStatefulSetStrategy": {
        "partition": not_negative,
        "maxUnavailable": amount_or_percent,
    },
    APPS + "StatefulSetOrdinals": {"start": not_negative},
    APPS + "StatefulSetPersistentVolumeClaimRetentionPolicy": {
        "whenDeleted": one_of("Delete", "Retain"),
        "whenScaled": one_of("Delete", "Retain"),
    },
    BATCH + "JobSpec": {
        "parallelism": not_negative,
        "completions": not_negative,
        "backoffLimit": not_negative,
        "activeDeadlineSeconds": between(1, 1 << 62, "must be greater than or equal to 0"),
        "ttlSecondsAfterFinished": not_negative,
        "completionMode": one_of("Indexed", "NonIndexed"),
        "podReplacementPolicy": one_of("Failed", "TerminatingOrFailed"),
    },
    BATCH + "CronJobSpec": {
        "schedule": schedule,
        "concurrencyPolicy": one_of("Allow", "Forbid", "Replace"),
        "startingDeadlineSeconds": not_negative,
        "successfulJobsHistoryLimit": not_negative,
        "failedJobsHistoryLimit": not_negative,
    },
}

REQUIRED: dict[str, dict[str, str]] = {
    APPS + "DeploymentSpec": {"template": ""},
    APPS + "ReplicaSetSpec": {"template": ""},
    APPS + "DaemonSetSpec": {"template": ""},
    APPS + "StatefulSetSpec": {"template": ""},
    BATCH + "JobSpec": {"template": ""},
    BATCH + "CronJobSpec": {"schedule": "", "jobTemplate": ""},
}

CHECKS = {
    CORE + "ReplicationControllerSpec": replication_controller_spec,
    APPS + "DeploymentSpec": deployment_spec,
    APPS + "DeploymentStrategy": deployment_strategy,
    APPS + "RollingUpdateDeployment": rolling_update,
    APPS + "ReplicaSetSpec": _workload("deployment", "ReplicaSet"),
    APPS + "DaemonSetSpec": _workload("daemonset", "DaemonSet"),
    APPS + "RollingUpdateDaemonSet": rolling_daemons,
    APPS + "StatefulSetSpec": _workload("statefulset", "StatefulSet"),
    BATCH + "JobSpec": job_spec,
}
