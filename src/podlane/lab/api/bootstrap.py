"""What a cluster has before anybody made anything: namespaces, the `kubernetes` service, podlane's kinds and
what its daemons may do."""

from __future__ import annotations

from collections.abc import Sequence

from podlane.controller import definitions, rights
from podlane.errors import AlreadyExistsError
from podlane.lab.api import namespaces
from podlane.lab.api.registry import Registry
from podlane.lab.api.store import copied
from podlane.lab.client import Obj
from podlane.model.addresses import Family, address, family_of
from podlane.model.config import NetworkConfig

SERVICE = "kubernetes"
API_PORT = 6443
_LABELS = {"component": "apiserver", "provider": "kubernetes"}


def bootstrap(registry: Registry, config: NetworkConfig, endpoints: Sequence[str], port: int) -> None:
    """Make what is missing; bring the `kubernetes` endpoints up to date. endpoints: addresses of the API."""
    for obj in namespaces.bootstrap_objects():
        _create(registry, "namespaces", obj)
    for definition in definitions.ALL:
        _put(registry, "customresourcedefinitions.apiextensions.k8s.io", definition)
    # Once: what somebody takes away afterwards stays away, as in a cluster.
    if _create(registry, "namespaces", {"metadata": {"name": rights.NAMESPACE}}):
        for obj in rights.objects():
            row = registry.catalog.of_kind(obj["apiVersion"], obj["kind"])
            assert row is not None
            _put(registry, row.id, obj)
    with registry.store.transaction() as transaction:
        registry.services.ensure_default(transaction)
    _create(registry, "services", _service(config, port))
    by_family: dict[Family, list[str]] = {}
    for text in endpoints:
        by_family.setdefault(family_of(address(text)), []).append(text)
    primary = config.ip_families[0]
    for family, addresses in by_family.items():
        # The old Endpoints have one family, the primary one; slices one each.
        suffix = "" if family is primary else f"-{family.value.lower()}"
        _put(registry, "endpointslices.discovery.k8s.io", _slice(SERVICE + suffix, family, addresses, port))
    if primary in by_family:
        subset = {
            "addresses": [{"ip": ip} for ip in by_family[primary]],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }
        meta = {
            "name": SERVICE,
            "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        }
        _put(
            registry,
            "endpoints",
            {"apiVersion": "v1", "kind": "Endpoints", "metadata": meta, "subsets": [subset]},
        )


def _service(config: NetworkConfig, port: int) -> Obj:
    """Its ClusterIP is the first address of the service range, as in every cluster."""
    addresses = [str(prefix[1]) for prefix in config.cluster_services.values()]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": "default", "labels": dict(_LABELS)},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": [family.value for family in config.cluster_services],
            "ipFamilyPolicy": "SingleStack" if len(addresses) == 1 else "PreferDualStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    }


def _slice(name: str, family: Family, addresses: list[str], port: int) -> Obj:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": SERVICE},
        },
        "addressType": family.value,
        "endpoints": [{"addresses": [ip], "conditions": {"ready": True}} for ip in addresses],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    }


def _create(registry: Registry, resource: str, obj: Obj) -> bool:
    row = registry.catalog.named(resource)
    try:
        registry.create(row, obj["metadata"].get("namespace", ""), copied(obj))
    except AlreadyExistsError:
        return False
    return True


def _put(registry: Registry, resource: str, obj: Obj) -> None:
    if not _create(registry, resource, obj):
        row = registry.catalog.named(resource)
        meta = obj["metadata"]
        registry.update(row, meta.get("namespace", ""), meta["name"], copied(obj))
