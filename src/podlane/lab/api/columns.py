"""Columns of the built-in kinds, as kubernetes pkg/printers/internalversion has them.

A row is (title, cell[, type]); Name comes first by itself. A title that begins with "+" is for -o wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from podlane.lab.api import columns_network, columns_pods
from podlane.lab.api.cells import (
    NONE,
    UNKNOWN,
    Cell,
    age,
    at,
    container_images,
    container_names,
    created_at,
    field,
    human,
    number,
    seconds,
    selector_at,
    since,
)
from podlane.lab.client import Obj

Row = tuple[str, Cell] | tuple[str, Cell, str]

AGE: Row = ("Age", age)


def _pods_of(path: str = "spec.template.spec", selector: str = "spec.selector") -> tuple[Row, ...]:
    """What -o wide adds to workloads."""
    rows: list[Row] = [("+Containers", container_names(path)), ("+Images", container_images(path))]
    if selector:
        rows.append(("+Selector", selector_at(selector)))
    return tuple(rows)


def _ready_of(obj: Obj, _: float) -> str:
    return f"{at(obj, 'status.readyReplicas', 0)}/{at(obj, 'spec.replicas', 0)}"


def _data(obj: Obj, _: float) -> int:
    return len(obj.get("data") or {}) + len(obj.get("binaryData") or {})


# --- nodes, namespaces, events --------------------------------------------------------------------


def _node_status(obj: Obj, _: float) -> str:
    ready = next((c for c in at(obj, "status.conditions", ()) if c.get("type") == "Ready"), None)
    found = "Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"
    return found + (",SchedulingDisabled" if at(obj, "spec.unschedulable") else "")


def _node_roles(obj: Obj, _: float) -> str:
    prefix = "node-role.kubernetes.io/"
    labels = obj["metadata"].get("labels") or {}
    return ",".join(sorted(k.removeprefix(prefix) for k in labels if k.startswith(prefix))) or NONE


def _node_address(kind: str) -> Cell:
    def cell(obj: Obj, _: float) -> str:
        addresses = at(obj, "status.addresses", ())
        return next((a["address"] for a in addresses if a.get("type") == kind), NONE)

    return cell


def _last_seen(obj: Obj, now_s: float) -> str:
    last = at(obj, "series.lastObservedTime") or obj.get("lastTimestamp") or obj.get("eventTime")
    return since(last or obj["metadata"].get("creationTimestamp"), now_s)


def _first_seen(obj: Obj, now_s: float) -> str:
    return since(obj.get("firstTimestamp") or obj.get("eventTime"), now_s)


def _event_object(obj: Obj, _: float) -> str:
    found = obj.get("involvedObject") or {}
    return f"{str(found.get('kind', '')).lower()}/{found.get('name', '')}"


def _event_source(obj: Obj, _: float) -> str:
    source = obj.get("source") or {}
    parts = [source.get("component") or obj.get("reportingComponent"), source.get("host")]
    return ", ".join(p for p in parts if p)


def _event_count(obj: Obj, _: float) -> int:
    return int(at(obj, "series.count") or obj.get("count") or 1)


def _event_message(obj: Obj, _: float) -> str:
    return str(obj.get("message") or "").strip()


# --- jobs -----------------------------------------------------------------------------------------


def _job_status(obj: Obj, _: float) -> str:
    true = {c["type"] for c in at(obj, "status.conditions", ()) if c.get("status") == "True"}
    for condition, shown in (
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ):
        if condition in true:
            return shown
    return "Terminating" if "deletionTimestamp" in obj["metadata"] else "Running"


def _job_completions(obj: Obj, _: float) -> str:
    done, wanted = at(obj, "status.succeeded", 0), at(obj, "spec.completions")
    if wanted is not None:
        return f"{done}/{wanted}"
    parallel = at(obj, "spec.parallelism", 0)
    return f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"


def _job_duration(obj: Obj, now_s: float) -> str:
    start = seconds(at(obj, "status.startTime", ""))
    end = seconds(at(obj, "status.completionTime", ""))
    return "" if start is None else human((now_s if end is None else end) - start)


def _last_schedule(obj: Obj, now_s: float) -> str:
    found = at(obj, "status.lastScheduleTime")
    return since(found, now_s) if found else NONE


# --- the rest -------------------------------------------------------------------------------------


def _hpa_reference(obj: Obj, _: float) -> str:
    found = at(obj, "spec.scaleTargetRef", {})
    return f"{found.get('kind', '')}/{found.get('name', '')}"


def _hpa_targets(obj: Obj, _: float) -> str:
    found = []
    for metric in at(obj, "spec.metrics", ()):
        of = metric.get("resource") or {}
        wanted = at(of, "target.averageUtilization")
        found.append(f"{of.get('name', metric.get('type'))}: {UNKNOWN}/{wanted if wanted else '?'}%")
    return ", ".join(found) or NONE


def _access_modes(obj: Obj, _: float) -> str:
    short = {
        "ReadWriteOnce": "RWO",
        "ReadOnlyMany": "ROX",
        "ReadWriteMany": "RWX",
        "ReadWriteOncePod": "RWOP",
    }
    return ",".join(short.get(m, m) for m in at(obj, "spec.accessModes", ()))


def _claim(obj: Obj, _: float) -> str:
    found = at(obj, "spec.claimRef")
    return f"{found.get('namespace', '')}/{found.get('name', '')}" if found else ""


def _role(obj: Obj, _: float) -> str:
    return f"{at(obj, 'roleRef.kind', '')}/{at(obj, 'roleRef.name', '')}"


def _subjects(kind: str) -> Cell:
    def cell(obj: Obj, _: float) -> str:
        found = [s for s in obj.get("subjects") or () if s.get("kind") == kind]
        return ", ".join(f"{s['namespace']}/{s['name']}" if s.get("namespace") else s["name"] for s in found)

    return cell


def _quota(limits: bool) -> Cell:
    def cell(obj: Obj, _: float) -> str:
        used = at(obj, "status.used", {})
        hard = at(obj, "status.hard") or at(obj, "spec.hard", {})
        shown = sorted(k for k in hard if k.startswith("limits") is limits)
        return ", ".join(f"{k}: {used.get(k, 0)}/{hard[k]}" for k in shown)

    return cell


def _controller(obj: Obj, _: float) -> str:
    owners = obj["metadata"].get("ownerReferences") or ()
    owner: dict[str, Any] | None = next((o for o in owners if o.get("controller")), None)
    if owner is None:
        return NONE
    group = owner["apiVersion"].rpartition("/")[0]
    return f"{owner['kind'].lower()}{'.' + group if group else ''}/{owner['name']}"


_BINDING: tuple[Row, ...] = (
    ("Role", _role),
    AGE,
    ("+Users", _subjects("User")),
    ("+Groups", _subjects("Group")),
    ("+ServiceAccounts", _subjects("ServiceAccount")),
)
_REPLICAS: tuple[Row, ...] = (
    ("Desired", number("spec.replicas"), "integer"),
    ("Current", number("status.replicas"), "integer"),
    ("Ready", number("status.readyReplicas"), "integer"),
    AGE,
    *_pods_of(),
)

EVENTS: tuple[Row, ...] = (
    ("Last Seen", _last_seen),
    ("Type", field("type", "")),
    ("Reason", field("reason", "")),
    ("Object", _event_object),
    ("+Subobject", field("involvedObject.fieldPath", "")),
    ("+Source", _event_source),
    ("Message", _event_message),
    ("+First Seen", _first_seen),
    ("+Count", _event_count),
    ("+Name", field("metadata.name")),
)

COLUMNS: dict[str, Sequence[Row]] = {
    "configmaps": (("Data", _data, "integer"), AGE),
    "controllerrevisions.apps": (
        ("Controller", _controller),
        ("Revision", number("revision"), "integer"),
        AGE,
    ),
    "clusterrolebindings.rbac.authorization.k8s.io": _BINDING,
    "clusterroles.rbac.authorization.k8s.io": (("Created At", created_at),),
    "cronjobs.batch": (
        ("Schedule", field("spec.schedule")),
        ("Timezone", field("spec.timeZone")),
        ("Suspend", lambda obj, _: str(bool(at(obj, "spec.suspend")))),
        ("Active", lambda obj, _: len(at(obj, "status.active", ())), "integer"),
        ("Last Schedule", _last_schedule),
        AGE,
        *_pods_of("spec.jobTemplate.spec.template.spec", "spec.jobTemplate.spec.selector"),
    ),
    "customresourcedefinitions.apiextensions.k8s.io": (("Created At", created_at),),
    "daemonsets.apps": (
        ("Desired", number("status.desiredNumberScheduled"), "integer"),
        ("Current", number("status.currentNumberScheduled"), "integer"),
        ("Ready", number("status.numberReady"), "integer"),
        ("Up-to-date", number("status.updatedNumberScheduled"), "integer"),
        ("Available", number("status.numberAvailable"), "integer"),
        ("Node Selector", selector_at("spec.template.spec.nodeSelector")),
        AGE,
        *_pods_of(),
    ),
    "deployments.apps": (
        ("Ready", _ready_of),
        ("Up-to-date", number("status.updatedReplicas"), "integer"),
        ("Available", number("status.availableReplicas"), "integer"),
        AGE,
        *_pods_of(),
    ),
    "endpoints": (("Endpoints", columns_network.endpoints), AGE),
    "endpointslices.discovery.k8s.io": (
        ("AddressType", field("addressType")),
        ("Ports", columns_network.slice_ports),
        ("Endpoints", columns_network.slice_endpoints),
        AGE,
    ),
    "events": EVENTS,
    "horizontalpodautoscalers.autoscaling": (
        ("Reference", _hpa_reference),
        ("Targets", _hpa_targets),
        ("MinPods", field("spec.minReplicas", "<unset>")),
        ("MaxPods", number("spec.maxReplicas"), "integer"),
        ("Replicas", number("status.currentReplicas"), "integer"),
        AGE,
    ),
    "ingressclasses.networking.k8s.io": (
        ("Controller", field("spec.controller")),
        ("Parameters", columns_network.parameters),
        AGE,
    ),
    "ingresses.networking.k8s.io": (
        ("Class", field("spec.ingressClassName")),
        ("Hosts", columns_network.ingress_hosts),
        ("Address", columns_network.ingress_address),
        ("Ports", columns_network.ingress_ports),
        AGE,
    ),
    "ipaddresses.networking.k8s.io": (("ParentRef", columns_network.parent), AGE),
    "jobs.batch": (
        ("Status", _job_status),
        ("Completions", _job_completions),
        ("Duration", _job_duration),
        AGE,
        *_pods_of(),
    ),
    "leases.coordination.k8s.io": (("Holder", field("spec.holderIdentity", "")), AGE),
    "limitranges": (("Created At", created_at),),
    "namespaces": (("Status", field("status.phase", "")), AGE),
    "networkpolicies.networking.k8s.io": (("Pod-Selector", selector_at("spec.podSelector")), AGE),
    "nodes": (
        ("Status", _node_status),
        ("Roles", _node_roles),
        AGE,
        ("Version", field("status.nodeInfo.kubeletVersion", "")),
        ("+Internal-IP", _node_address("InternalIP")),
        ("+External-IP", _node_address("ExternalIP")),
        ("+OS-Image", field("status.nodeInfo.osImage", UNKNOWN)),
        ("+Kernel-Version", field("status.nodeInfo.kernelVersion", UNKNOWN)),
        ("+Container-Runtime", field("status.nodeInfo.containerRuntimeVersion", UNKNOWN)),
    ),
    "persistentvolumeclaims": (
        ("Status", field("status.phase", "")),
        ("Volume", field("spec.volumeName", "")),
        ("Capacity", field("status.capacity.storage", "")),
        ("Access Modes", _access_modes),
        ("StorageClass", field("spec.storageClassName", "")),
        ("VolumeAttributesClass", field("spec.volumeAttributesClassName", "<unset>")),
        AGE,
        ("+VolumeMode", field("spec.volumeMode", "<unset>")),
    ),
    "persistentvolumes": (
        ("Capacity", field("spec.capacity.storage", "")),
        ("Access Modes", _access_modes),
        ("Reclaim Policy", field("spec.persistentVolumeReclaimPolicy", "")),
        ("Status", field("status.phase", "")),
        ("Claim", _claim),
        ("StorageClass", field("spec.storageClassName", "")),
        ("VolumeAttributesClass", field("spec.volumeAttributesClassName", "<unset>")),
        ("Reason", field("status.reason", "")),
        AGE,
        ("+VolumeMode", field("spec.volumeMode", "<unset>")),
    ),
    "poddisruptionbudgets.policy": (
        ("Min Available", field("spec.minAvailable", "N/A")),
        ("Max Unavailable", field("spec.maxUnavailable", "N/A")),
        ("Allowed Disruptions", number("status.disruptionsAllowed"), "integer"),
        AGE,
    ),
    "pods": columns_pods.ROWS,
    "podtemplates": (
        ("Containers", container_names("template.spec")),
        ("Images", container_images("template.spec")),
        ("Pod Labels", selector_at("template.metadata.labels")),
    ),
    "priorityclasses.scheduling.k8s.io": (
        ("Value", number("value"), "integer"),
        ("Global-Default", lambda obj, _: bool(obj.get("globalDefault")), "boolean"),
        AGE,
        ("PreemptionPolicy", field("preemptionPolicy", "")),
    ),
    "replicasets.apps": _REPLICAS,
    "replicationcontrollers": _REPLICAS,
    "resourcequotas": (("Request", _quota(False)), ("Limit", _quota(True)), AGE),
    "rolebindings.rbac.authorization.k8s.io": _BINDING,
    "roles.rbac.authorization.k8s.io": (("Created At", created_at),),
    "runtimeclasses.node.k8s.io": (("Handler", field("handler", "")), AGE),
    "secrets": (("Type", field("type", "")), ("Data", _data, "integer"), AGE),
    "serviceaccounts": (("Secrets", lambda obj, _: len(obj.get("secrets") or ()), "integer"), AGE),
    "servicecidrs.networking.k8s.io": (("CIDRs", lambda obj, _: ",".join(at(obj, "spec.cidrs", ()))), AGE),
    "services": (
        ("Type", field("spec.type", "")),
        ("Cluster-IP", field("spec.clusterIP")),
        ("External-IP", columns_network.external_ip),
        ("Port(s)", columns_network.service_ports),
        AGE,
        ("+Selector", selector_at("spec.selector")),
    ),
    "statefulsets.apps": (("Ready", _ready_of), AGE, *_pods_of(selector="")),
    "storageclasses.storage.k8s.io": (
        ("Provisioner", field("provisioner", "")),
        ("ReclaimPolicy", field("reclaimPolicy", "")),
        ("VolumeBindingMode", field("volumeBindingMode", "")),
        ("AllowVolumeExpansion", lambda obj, _: bool(obj.get("allowVolumeExpansion")), "boolean"),
        AGE,
    ),
}
