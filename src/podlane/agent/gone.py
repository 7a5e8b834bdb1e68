"""Which endpoints' pods are no more: asked before a connection to one is ended.

An endpoint leaves its service when its pod goes, but also when the pod loses a label, and then its
connections are to go on. The agent follows only the pods of its own node, so the API is asked for those of
the node in question, and only when conntrack has connections to such an endpoint.

    an address of this node     gone when no pod is attached with it
    of another node's podCIDR   gone when no pod of that node has it, or all that have it have ended
    of the pods' range, but of  gone: no node could bring a packet there
    no node
    anything else               a host's, or somebody's beyond the cluster: not for us to say
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError
from ipaddress import ip_network
from typing import Final

import msgspec

from podlane.compile import facts
from podlane.compile.policy_index import ENDED
from podlane.compile.view import View, pod_addresses
from podlane.errors import ApiError, ConfigError
from podlane.model.addresses import Address, Prefix, family_of
from podlane.model.config import NetworkConfig
from podlane.model.objects import Pod
from podlane.watch.http import ApiHttp
from podlane.watch.reflector import PATHS

log = logging.getLogger(__name__)

_TIMEOUT_S: Final = 15.0


class _PodList(msgspec.Struct):
    items: list[Pod] = []


class GonePods:
    """view: the compiler's, once there is one. `among` is for other threads than that of `loop`."""

    def __init__(self, api: ApiHttp, config: NetworkConfig, loop: asyncio.AbstractEventLoop) -> None:
        self._api, self._config, self._loop = api, config, loop
        self.view: View | None = None

    def among(self, addresses: frozenset[Address]) -> frozenset[Address]:
        """Those of the addresses that have no pod any more. Nothing is gone while the API cannot be asked."""
        work = self._among(addresses)
        try:
            answer = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the agent has ended
            work.close()
            return frozenset()
        try:
            return answer.result(_TIMEOUT_S)
        except (FutureTimeoutError, CancelledError):
            answer.cancel()
            return frozenset()

    async def _among(self, addresses: Iterable[Address]) -> frozenset[Address]:
        if self.view is None:
            return frozenset()
        gone: set[Address] = set()
        elsewhere: dict[str, set[Address]] = {}
        owners = self._owners()
        lengths = {(prefix.version, prefix.prefixlen) for prefix in owners}
        for where in addresses:
            wide = (ip_network((where, bits), False) for version, bits in lengths if version == where.version)
            node = next((owners[prefix] for prefix in wide if prefix in owners), "")
            if node == self.view.me.name:
                gone |= set() if self.view.attachments_at(where) else {where}
            elif node:
                elsewhere.setdefault(node, set()).add(where)
            elif (pods := self._config.pods.get(family_of(where))) is not None and where in pods:
                gone.add(where)
        for node, asked in elsewhere.items():
            try:
                gone |= asked - await self._on(node)
            except (ApiError, msgspec.MsgspecError) as error:
                log.debug("the pods of %s: %s", node, error)
        return frozenset(gone)

    def _owners(self) -> dict[Prefix, str]:
        """Each podCIDR with its node: asked of many addresses, and there may be many nodes."""
        assert self.view is not None
        found: dict[Prefix, str] = {}
        for name, node in self.view.nodes.items():
            with contextlib.suppress(ConfigError):
                for prefix in facts.pod_prefixes(node).values():
                    found.setdefault(prefix, name)
        return found

    async def _on(self, node: str) -> set[Address]:
        """The addresses of the pods of a node that have not ended."""
        body = await self._api.get(PATHS["Pod"], {"fieldSelector": f"spec.nodeName={node}"})
        pods = msgspec.json.decode(body, type=_PodList).items
        return {
            where
            for pod in pods
            if pod.spec.node_name == node and pod.status.phase not in ENDED
            for where in pod_addresses(pod)
        }
