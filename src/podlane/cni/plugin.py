"""The verbs of the `podlane` plugin type, from environment and configuration to answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from podlane.cni import protocol, wire
from podlane.cni.attacher import Attacher
from podlane.cni.leases import Lease
from podlane.cni.link import ANYWHERE, GATEWAYS, host_mac
from podlane.cni.protocol import Interface, Ip, Request, Result, RouteEntry, Verb
from podlane.errors import CniError
from podlane.model.addresses import family_of

_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What the runtime sees of the plugin: its exit status and its standard output."""

    status: int
    stdout: bytes


class Plugin:
    """A request comes in as the runtime made it; netns_fd is CNI_NETNS opened, None if that failed."""

    def __init__(self, attacher: Attacher) -> None:
        self._attacher = attacher

    async def __call__(self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None) -> Answer:
        """Never raises: every failure is an answer."""
        version = protocol.version_of(stdin)
        try:
            request = protocol.parse(environment, stdin)
            return Answer(0, await self._run(request, netns_fd))
        except CniError as error:
            return Answer(1, protocol.encode_error(error, version))
        except Exception as error:
            _log.exception("CNI %s failed", environment.get("CNI_COMMAND", ""))
            internal = CniError(protocol.INTERNAL, f"{type(error).__name__}: {error}")
            return Answer(1, protocol.encode_error(internal, version))

    async def _run(self, request: Request, netns_fd: int | None) -> bytes:
        match request.verb:
            case Verb.VERSION:
                return protocol.encode_versions()
            case Verb.STATUS:
                if self._attacher.not_ready:
                    raise CniError(protocol.NOT_AVAILABLE, self._attacher.not_ready)
            case Verb.ADD:
                lease = await self._attacher.attach(
                    request.container_id,
                    request.ifname,
                    _namespace(request, netns_fd),
                    network=request.network,
                    pod_namespace=request.args.get("K8S_POD_NAMESPACE", ""),
                    pod_name=request.args.get("K8S_POD_NAME", ""),
                )
                result = result_of(lease, request.netns, self._attacher.mtu_bytes)
                return protocol.encode_result(result, request.version)
            case Verb.DEL:
                await self._attacher.detach(request.container_id, request.ifname)
            case Verb.CHECK:
                namespace = _namespace(request, netns_fd)
                lease = await self._attacher.check(request.container_id, request.ifname, namespace)
                _compare(lease, request)
            case Verb.GC:
                if request.valid_attachments is None:
                    what = "GC needs cni.dev/valid-attachments: without the list everything would go"
                    raise CniError(protocol.INVALID_CONFIG, what)
                await self._attacher.keep_only(request.network, set(request.valid_attachments))
        return b""

    async def replay(self, spool: Path) -> list[str]:
        """Runs the DELs that came while no agent was there. Returns what went wrong, one line a request.

        A request that fails stays for the next start, one that cannot be read is removed.
        """
        failures: list[str] = []
        for path in sorted(spool.glob("*.request")) if spool.is_dir() else ():
            try:
                environment, stdin = wire.unpack_request(path.read_bytes())
            except ValueError as error:
                failures.append(f"{path}: {error}; removed")
                path.unlink(missing_ok=True)
                continue
            answer = await self(environment, stdin, None)
            if answer.status:
                failures.append(f"{path}: {answer.stdout.decode(errors='replace')}")
            else:
                path.unlink(missing_ok=True)
        return failures


def result_of(lease: Lease, sandbox: str, mtu_bytes: int) -> Result:
    """What ADD answers: the node's end, the pod's end, its addresses and default routes."""
    families = list(dict.fromkeys(map(family_of, lease.addresses)))
    return Result(
        interfaces=(
            Interface(lease.device, host_mac(lease.device), mtu_bytes),
            Interface(lease.ifname, lease.mac, mtu_bytes, sandbox),
        ),
        ips=tuple(Ip(a, family_of(a).bits, GATEWAYS[family_of(a)], 1) for a in lease.addresses),
        routes=tuple(RouteEntry(ANYWHERE[family], GATEWAYS[family]) for family in families),
    )


def _namespace(request: Request, netns_fd: int | None) -> int:
    if netns_fd is None:
        raise CniError(protocol.INVALID_ENVIRONMENT, f"CNI_NETNS {request.netns!r} cannot be opened")
    return netns_fd


def _compare(lease: Lease, request: Request) -> None:
    """CHECK: addresses of ours that prevResult lists for the interface and that it does not have.

    Later plugins of a chain may have added others; what they may not do is take ours away.
    """
    previous = request.previous or {}
    text = {str(entry.get("address", "")).partition("/")[0] for entry in previous.get("ips") or ()}
    missing = [str(address) for address in lease.addresses if str(address) not in text]
    if text and missing:
        raise CniError(
            protocol.NOT_AS_MADE, f"prevResult does not list {', '.join(missing)} of this attachment"
        )
