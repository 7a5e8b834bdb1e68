"""What is done with a container while it runs: its postStart hook, then its probes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from podlane.lab.client import Obj
from podlane.lab.kubelet import probes, probing
from podlane.lab.kubelet.status import ContainerState
from podlane.lab.supervisor.client import AsyncSupervisor

HOOK_TIMEOUT_S = 30.0
HOOK_GRACE_S = 2.0

Say = Callable[[str, str, bool], None]
"""reason, message, whether it is a warning"""
Kill = Callable[[str, float | None], None]
"""why, grace in seconds (None: the pod's own)"""


class Health:
    """`watch` sets state.started and state.ready as hooks and probes say, and asks to kill what is unwell.

    changed() is called after each change.
    """

    def __init__(
        self,
        container: Obj,
        state: ContainerState,
        target: probing.Target,
        supervisor: AsyncSupervisor,
        *,
        changed: Callable[[], None],
        say: Say,
        kill: Kill,
    ) -> None:
        self._container, self._state, self._target = container, state, target
        self._supervisor = supervisor
        self._changed, self._say, self._kill = changed, say, kill

    async def watch(self, *, began_now: bool) -> None:
        """Until cancelled, or until there is nothing more to ask. began_now: the hook is still to run."""
        hook = (self._container.get("lifecycle") or {}).get("postStart")
        if hook and began_now:
            outcome = await self._act(hook, HOOK_TIMEOUT_S)
            if not outcome.ok and not outcome.absent:
                self._say("FailedPostStartHook", f"PostStartHook failed: {outcome.text}", True)
                self._kill("FailedPostStartHook", HOOK_GRACE_S)
                return
        startup = probes.parse(self._container, probes.Kind.STARTUP)
        if startup is not None and not self._state.started:
            await self._probe(startup, self._startup)
            if not self._state.started:
                return
        async with asyncio.TaskGroup() as group:
            readiness = probes.parse(self._container, probes.Kind.READINESS)
            if readiness is not None:
                group.create_task(self._probe(readiness, self._readiness))
            else:
                self._set_ready(True)
            liveness = probes.parse(self._container, probes.Kind.LIVENESS)
            if liveness is not None:
                group.create_task(self._probe(liveness, self._liveness))

    async def _probe(
        self, probe: probes.Probe, verdict: Callable[[probes.Probe, bool], Awaitable[bool]]
    ) -> None:
        """Asks until verdict(...) says that it is enough."""
        machine = probes.Machine(probe)
        told_absent = False
        while True:
            await asyncio.sleep(machine.next_s)
            outcome = await self._act(probe.action, probe.timeout_s)
            ok = outcome.ok
            if outcome.absent and self._target.responder:
                ok = True
                if not told_absent:
                    told_absent = True
                    text = f"{probe.kind} probe passes: its program is not on this machine ({outcome.text})"
                    self._say("ProbeProgramAbsent", text, False)
            changed = machine.record(ok)
            if not ok and machine.next_s >= probe.period_s:
                self._say("Unhealthy", f"{probe.kind} probe failed: {outcome.text}", True)
            if changed is not None and await verdict(probe, changed):
                return

    async def _startup(self, probe: probes.Probe, ok: bool) -> bool:
        if ok:
            self._state.started = True
            self._changed()
        else:
            self._unwell(probe)
        return True

    async def _readiness(self, _: probes.Probe, ok: bool) -> bool:
        self._set_ready(ok)
        return False

    async def _liveness(self, probe: probes.Probe, ok: bool) -> bool:
        if not ok:
            self._unwell(probe)
        return not ok

    def _set_ready(self, ready: bool) -> None:
        if self._state.ready != ready:
            self._state.ready = ready
            self._changed()

    def _unwell(self, probe: probes.Probe) -> None:
        grace = None if probe.grace_period_s is None else float(probe.grace_period_s)
        name = self._container["name"]
        self._kill(f"Container {name} failed {probe.kind.lower()} probe, will be restarted", grace)

    async def _act(self, action: Obj, timeout_s: float) -> probing.Outcome:
        return await probing.act(action, self._target, self._supervisor, timeout_s)
