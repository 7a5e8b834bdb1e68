"""A request of the runtime, from environment and configuration to answer: the type it names does the verb."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from podlane.cni import protocol, wire
from podlane.cni.host import AgentHost, perform
from podlane.cni.link import as_cni_error
from podlane.cni.plugins.base import Call, Owner
from podlane.cni.protocol import Request, Verb
from podlane.cni.results import Result, decode, encode_result
from podlane.cni.turns import Turns
from podlane.errors import CniError, KernelError, UnsupportedError
from podlane.kernel.rtnl import Rtnl

_log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What the runtime sees of the plugin: its exit status and its standard output."""

    status: int
    stdout: bytes


Observed: TypeAlias = Callable[[str, int, float], None]
"""Told of each request: its verb, the answer's code (0: success), how many seconds it took."""


class Plugin:
    """A request comes in as the runtime made it; netns_fd is CNI_NETNS opened, None if that failed."""

    def __init__(self, host: AgentHost, observed: Observed = lambda verb, code, seconds: None) -> None:
        self._host, self._observed = host, observed
        self._turns: Turns[Owner] = Turns()

    async def __call__(self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None) -> Answer:
        """Never raises: every failure is an answer."""
        began_s = time.monotonic()
        code, answer = await self._answer(environment, stdin, netns_fd)
        verb = environment.get("CNI_COMMAND", "")
        self._observed(verb if verb in Verb.__members__ else "unknown", code, time.monotonic() - began_s)
        return answer

    async def _answer(
        self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None
    ) -> tuple[int, Answer]:
        try:
            return 0, Answer(0, await self._run(environment, stdin, netns_fd))
        except CniError as error:
            refusal = error
        except Exception as error:
            _log.exception("CNI %s failed", environment.get("CNI_COMMAND", ""))
            refusal = CniError(protocol.INTERNAL, f"{type(error).__name__}: {error}")
        return refusal.code, Answer(1, protocol.encode_error(refusal, protocol.version_of(stdin)))

    async def _run(self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None) -> bytes:
        request = protocol.parse(environment, stdin, self._faults)
        if request.verb is Verb.VERSION:
            return protocol.encode_versions()
        if request.verb is Verb.GC and request.valid_attachments is None:
            what = "GC needs cni.dev/valid-attachments: without the list everything would go"
            raise CniError(protocol.INVALID_CONFIG, what)
        previous = None if request.previous is None else _previous(request)
        call = Call(request, self._host, environment, netns_fd, previous)
        what = f"{request.verb} of {request.kind} for {request.ifname} of {request.container_id}"
        async with self._turns.of(call.owner):
            try:
                result = await perform(self._host.types[request.kind], call)
            except KernelError as error:
                raise as_cni_error(error, what) from None
            except UnsupportedError as error:
                raise CniError(protocol.UNSUPPORTED_FIELD, f"{what}: {error}") from None
            except OSError as error:
                raise CniError(protocol.IO_FAILURE, f"{what}: {error}") from None
        return encode_result(result, request.version) if request.verb is Verb.ADD else b""

    def _faults(self, request: Request) -> list[str]:
        """What is wrong with the configuration in the eyes of its type and of its IPAM type.

        A DEL is done as well as it can be: what it cannot read of the configuration it does without.
        """
        kind = self._host.types.get(request.kind)
        if kind is None:
            known = ", ".join(sorted(self._host.types))
            return [f"type is {request.config.get('type')!r}, expected one of {known}"]
        if request.verb is Verb.DEL:
            return []
        return kind.faults(request) + self._ipam_faults(request)

    def _ipam_faults(self, request: Request) -> list[str]:
        ipam = request.config.get("ipam")
        name = ipam.get("type") if isinstance(ipam, dict) else None
        kind = self._host.types.get(name) if isinstance(name, str) and name != request.kind else None
        return kind.faults(request) if kind is not None else []

    async def collect(self) -> list[str]:
        """Detaches what has no link any more: a namespace went without its DEL, or an agent was killed
        within an ADD. Returns what went wrong, one line an attachment.
        """
        failures: list[str] = []
        for kind in self._host.types.values():
            for call in kind.leaked(self._host, await self._host.run(self._links)):
                async with self._turns.of(call.owner):
                    # Its turn may have come after an ADD that made it whole.
                    still = kind.leaked(self._host, await self._host.run(self._links))
                    if call.owner not in [each.owner for each in still]:
                        continue
                    try:
                        await kind.delete(call)
                    except (CniError, KernelError) as error:
                        failures.append(
                            f"{kind.name} {call.owner.ifname} of {call.owner.container_id}: {error}"
                        )
        return failures

    def _links(self) -> set[str]:
        with Rtnl(self._host.netns_fd) as node:
            return {link.name for link in node.links()}

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


def _previous(request: Request) -> Result | None:
    try:
        return decode(request.previous or {})
    except CniError:
        if request.verb is Verb.DEL:
            return None
        raise
