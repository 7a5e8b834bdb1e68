"""What a load balancer may ask a node: has this Service a ready endpoint here (healthCheckNodePort)?

Only Services of type LoadBalancer with externalTrafficPolicy Local have such a port, the same on every node,
for each of their families. Endpoints that terminate do not count, even where they still get what comes: the
balancer shall go elsewhere (KEP-1669). Two ports on one address are one endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from podlane.compile.endpoints import Known, Place, PortKey
from podlane.compile.tables import Backend, HealthCheck, HealthCheckKey
from podlane.model.addresses import Family
from podlane.model.objects import Service


def has_health_check(service: Service) -> bool:
    spec = service.spec
    local = spec.type == "LoadBalancer" and spec.external_traffic_policy == "Local"
    return local and bool(spec.health_check_node_port)


def health_checks(
    service: Service,
    known: Mapping[PortKey, Mapping[Backend, Known]],
    here: Place,
    families: Iterable[Family],
) -> dict[HealthCheckKey, HealthCheck]:
    """families: those in which the Service has an address."""
    if not has_health_check(service):
        return {}
    found = {}
    for family in families:
        ready = {
            each.address
            for (_, _, its_family), there in known.items()
            if its_family is family
            for each in there.values()
            if each.ready and each.node == here.node
        }
        key = HealthCheckKey(family, service.spec.health_check_node_port)
        found[key] = HealthCheck(service.namespace, service.name, len(ready))
    return found
