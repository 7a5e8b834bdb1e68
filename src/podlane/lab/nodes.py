"""Finds the kubelet that runs a pod, for `kubectl logs` and `kubectl exec`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from podlane.errors import ApiError
from podlane.lab.api.streams import ExecSession, Kubelets, LogOptions
from podlane.lab.client import ApiClient


class NodeKubelets:
    """Kubelets of all nodes as one (lab/api/streams.py): each call goes to the pod's node."""

    def __init__(self) -> None:
        self._kubelets: dict[str, Kubelets] = {}
        self._client: ApiClient | None = None

    def bind(self, client: ApiClient) -> None:
        self._client = client

    def add(self, node: str, kubelet: Kubelets) -> None:
        self._kubelets[node] = kubelet

    async def _of(self, namespace: str, pod: str) -> Kubelets:
        assert self._client is not None
        node = (await self._client.get("pods", pod, namespace)).get("spec", {}).get("nodeName", "")
        if not node:
            raise ApiError(f"pod {pod} does not have a host assigned", code=400, reason="BadRequest")
        if node not in self._kubelets:
            raise ApiError(f"node {node!r} of pod {pod} is not here", code=503, reason="ServiceUnavailable")
        return self._kubelets[node]

    async def logs(
        self, namespace: str, pod: str, container: str, options: LogOptions
    ) -> AsyncIterator[bytes]:
        kubelet = await self._of(namespace, pod)
        async for chunk in kubelet.logs(namespace, pod, container, options):
            yield chunk

    async def exec(
        self,
        namespace: str,
        pod: str,
        container: str,
        command: list[str],
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        tty: bool,
    ) -> ExecSession:
        kubelet = await self._of(namespace, pod)
        return await kubelet.exec(
            namespace, pod, container, command, stdin=stdin, stdout=stdout, stderr=stderr, tty=tty
        )
