"""What the API serves: one row a resource, and the catalog that finds rows by path, kind or name.

A resource's `id` is how the lab's own code names it ("pods", "deployments.apps"); its `storage` is where its
objects lie: events.k8s.io/v1 and core/v1 Events are the same objects, as are autoscaling v1 and v2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from podlane.errors import NotFoundError

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


class Resource(Struct, frozen=True, kw_only=True):
    """One kind under one group and version. schema: of a custom resource, else None (built in).

    subresources: served below an object (status, scale, binding, eviction, log, exec, finalize).
    storage_version: the apiVersion objects are kept in; others are converted on the way in and out.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = VERBS
    storage: str = ""
    storage_version: str = ""
    custom: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def id(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def list_kind(self) -> str:
        return f"{self.kind}List"

    @property
    def converted(self) -> bool:
        """Objects of this version are kept in another one."""
        return self.api_version != self.storage_version


def resource(
    group_version: str,
    kind: str,
    plural: str = "",
    *,
    cluster: bool = False,
    short: str = "",
    sub: str = "",
    categories: str = "",
    verbs: tuple[str, ...] = VERBS,
    storage: str = "",
    storage_version: str = "",
    custom: bool = False,
    singular: str = "",
) -> Resource:
    """A row; lists are words separated by spaces."""
    group, _, version = group_version.rpartition("/")
    plural = plural or kind.lower() + "s"
    return Resource(
        group=group,
        version=version,
        kind=kind,
        plural=plural,
        singular=singular or kind.lower(),
        namespaced=not cluster,
        short_names=tuple(short.split()),
        categories=tuple(categories.split()),
        subresources=tuple(sub.split()),
        verbs=verbs,
        storage=storage or (f"{plural}.{group}" if group else plural),
        storage_version=storage_version or group_version,
        custom=custom,
    )


BUILTIN: tuple[Resource, ...] = (
    resource("v1", "ConfigMap", short="cm"),
    resource("v1", "Endpoints", "endpoints", short="ep"),
    resource("v1", "Event", short="ev"),
    resource("v1", "LimitRange", short="limits"),
    resource(
        "v1",
        "Namespace",
        cluster=True,
        short="ns",
        sub="status finalize",
        verbs=tuple(v for v in VERBS if v != "deletecollection"),
    ),
    resource("v1", "Node", cluster=True, short="no", sub="status"),
    resource("v1", "PersistentVolumeClaim", short="pvc", sub="status"),
    resource("v1", "PersistentVolume", cluster=True, short="pv", sub="status"),
    resource(
        "v1",
        "Pod",
        short="po",
        categories="all",
        sub="status binding eviction log exec attach portforward",
    ),
    resource("v1", "PodTemplate"),
    resource("v1", "ReplicationController", short="rc", categories="all", sub="status scale"),
    resource("v1", "ResourceQuota", short="quota", sub="status"),
    resource("v1", "Secret"),
    resource("v1", "ServiceAccount", short="sa", sub="token"),
    resource("v1", "Service", short="svc", categories="all", sub="status"),
    resource("apps/v1", "ControllerRevision"),
    resource("apps/v1", "DaemonSet", short="ds", categories="all", sub="status"),
    resource("apps/v1", "Deployment", short="deploy", categories="all", sub="status scale"),
    resource("apps/v1", "ReplicaSet", short="rs", categories="all", sub="status scale"),
    resource("apps/v1", "StatefulSet", short="sts", categories="all", sub="status scale"),
    resource(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        short="hpa",
        categories="all",
        sub="status",
    ),
    resource(
        "autoscaling/v1",
        "HorizontalPodAutoscaler",
        short="hpa",
        categories="all",
        sub="status",
        storage_version="autoscaling/v2",
    ),
    resource("batch/v1", "CronJob", short="cj", categories="all", sub="status"),
    resource("batch/v1", "Job", categories="all", sub="status"),
    resource("coordination.k8s.io/v1", "Lease"),
    resource("discovery.k8s.io/v1", "EndpointSlice"),
    resource("events.k8s.io/v1", "Event", short="ev", storage="events", storage_version="v1"),
    resource("networking.k8s.io/v1", "Ingress", "ingresses", short="ing", sub="status"),
    resource("networking.k8s.io/v1", "IngressClass", "ingressclasses", cluster=True),
    resource("networking.k8s.io/v1", "IPAddress", "ipaddresses", cluster=True, short="ip"),
    resource("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", short="netpol"),
    resource("networking.k8s.io/v1", "ServiceCIDR", cluster=True, sub="status"),
    resource("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", cluster=True),
    resource("policy/v1", "PodDisruptionBudget", short="pdb", sub="status"),
    resource("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", cluster=True),
    resource("rbac.authorization.k8s.io/v1", "ClusterRole", cluster=True),
    resource("rbac.authorization.k8s.io/v1", "RoleBinding"),
    resource("rbac.authorization.k8s.io/v1", "Role"),
    resource("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", cluster=True, short="pc"),
    resource("storage.k8s.io/v1", "StorageClass", "storageclasses", cluster=True, short="sc"),
    resource(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        cluster=True,
        short="crd crds",
        categories="api-extensions",
        sub="status",
    ),
    *(
        resource(
            "authorization.k8s.io/v1", kind, cluster=kind != "LocalSubjectAccessReview", verbs=("create",)
        )
        for kind in (
            "LocalSubjectAccessReview",
            "SelfSubjectAccessReview",
            "SelfSubjectRulesReview",
            "SubjectAccessReview",
        )
    ),
    resource("authentication.k8s.io/v1", "SelfSubjectReview", cluster=True, verbs=("create",)),
)

GROUP_ORDER = (
    "",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
)
"""Discovery order: a short name of two groups is the first one's, as with kube-apiserver."""


class Catalog:
    """Every served resource; custom ones come and go. `generation` counts the changes, for caches."""

    def __init__(self, builtin: Iterable[Resource] = BUILTIN) -> None:
        self._by_path: dict[tuple[str, str, str], Resource] = {}
        self._by_id: dict[str, Resource] = {}
        self._by_kind: dict[tuple[str, str], Resource] = {}
        self.generation = 0
        for row in builtin:
            self.add(row)

    def add(self, row: Resource) -> None:
        """The first version added is the preferred one of its id."""
        self._by_path[row.group, row.version, row.plural] = row
        self._by_kind[row.api_version, row.kind] = row
        self._by_id.setdefault(row.id, row)
        self.generation += 1

    def remove(self, group: str, plural: str) -> None:
        """All versions of a custom resource."""
        for key, row in list(self._by_path.items()):
            if row.custom and (row.group, row.plural) == (group, plural):
                del self._by_path[key]
                self._by_kind.pop((row.api_version, row.kind), None)
                self._by_id.pop(row.id, None)
                self.generation += 1

    def at(self, group: str, version: str, plural: str) -> Resource:
        """What a path names. Raises NotFoundError, in the words clients know."""
        found = self._by_path.get((group, version, plural))
        if found is None:
            raise NotFoundError("the server could not find the requested resource")
        return found

    def named(self, resource_id: str) -> Resource:
        """By id. Raises NotFoundError."""
        found = self._by_id.get(resource_id)
        if found is None:
            raise NotFoundError(f"the server doesn't have a resource type {resource_id!r}")
        return found

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        return self._by_kind.get((api_version, kind))

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._by_path.values())

    def groups(self) -> dict[str, dict[str, list[Resource]]]:
        """group -> version -> resources, in discovery order, preferred version first."""
        found: dict[str, dict[str, list[Resource]]] = {}
        for row in self._by_path.values():
            found.setdefault(row.group, {}).setdefault(row.version, []).append(row)
        order = {group: i for i, group in enumerate(GROUP_ORDER)}
        ranked = sorted(found, key=lambda g: (order.get(g, len(order)), g))
        return {g: found[g] for g in ranked}


__all__ = ["BUILTIN", "VERBS", "Catalog", "Resource", "replace", "resource"]
