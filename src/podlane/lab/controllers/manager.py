"""All controllers of the lab, as one thing to start and stop."""

from __future__ import annotations

import time
from collections.abc import Callable

from podlane.controller import load_balancers
from podlane.controller.leader import LeaderElection, Led
from podlane.controller.manager import Manager
from podlane.controller.node_claims import NodeClaims
from podlane.controller.node_prefixes import NodePrefixes
from podlane.lab.client import ApiClient
from podlane.lab.controllers.context import Context, Runnable
from podlane.lab.controllers.cronjob import CronJobs
from podlane.lab.controllers.daemonset import DaemonSets
from podlane.lab.controllers.deployment import Deployments
from podlane.lab.controllers.endpoints import EndpointsController
from podlane.lab.controllers.endpointslice import EndpointSlices
from podlane.lab.controllers.everything import Everything
from podlane.lab.controllers.garbage import GarbageCollector
from podlane.lab.controllers.job import Jobs
from podlane.lab.controllers.loadbalancers import LoadBalancers
from podlane.lab.controllers.mirroring import Mirroring
from podlane.lab.controllers.namespaces import Namespaces
from podlane.lab.controllers.nodes import LostPods
from podlane.lab.controllers.replicaset import ReplicaSets, ReplicationControllers
from podlane.lab.controllers.scheduler import Scheduler
from podlane.lab.controllers.servicecidrs import ServiceAddresses, ServiceCIDRs
from podlane.lab.controllers.statefulset import StatefulSets
from podlane.model.config import NetworkConfig

LEADER = "lab-control"
"""Always the same, so that a control process that is started anew leads at once."""


def make_all(context: Context) -> list[Runnable]:
    """In no order that matters: all of them only react to what the API says."""
    everything = Everything(context)
    return [
        NodePrefixes(context),
        NodeClaims(context, allocated=True),
        Scheduler(context),
        Deployments(context),
        ReplicaSets(context),
        ReplicationControllers(context),
        DaemonSets(context),
        StatefulSets(context),
        Jobs(context),
        CronJobs(context),
        EndpointSlices(context),
        EndpointsController(context),
        Mirroring(context),
        ServiceCIDRs(context),
        ServiceAddresses(context),
        # Who runs `podlane controller` beside the lab has one that waits.
        Led(context, LeaderElection(context.client, LEADER, duration_s=60), load_balancers.make),
        LoadBalancers(context),
        Namespaces(context, everything),
        GarbageCollector(context, everything),
        LostPods(context),
    ]


class ControllerManager(Manager):
    """All controllers of a lab, unless make says others."""

    def __init__(
        self,
        client: ApiClient,
        config: NetworkConfig,
        *,
        ca_pem: str = "",
        now: Callable[[], float] = time.time,
        make: Callable[[Context], list[Runnable]] = make_all,
    ) -> None:
        super().__init__(client, config, make=make, ca_pem=ca_pem, now=now)
