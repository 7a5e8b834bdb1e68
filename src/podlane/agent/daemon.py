"""The node agent, wired: watch -> compile -> drivers, with CNI, the kernel's notices and a window.

Nothing is decided here. News of the API, of CNI and of the kernel are handed to the reconciler; this
module knows only when the first resync may be (`_blockers`) and what to tell who asks.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from podlane.agent import collector, http, install, notify, report, sysctls
from podlane.agent.announcements import Announcements
from podlane.agent.announcer import Announcer
from podlane.agent.attachments import Attachments, concerns
from podlane.agent.backends import Backends
from podlane.agent.complaints import Complaint, complaints
from podlane.agent.degradation import Degradation, degraded
from podlane.agent.events import Events
from podlane.agent.health_checks import HealthChecks
from podlane.agent.intake import Versions, changes, sources
from podlane.agent.metrics import AgentMetrics
from podlane.agent.metrics_page import MetricsPage
from podlane.agent.monitor import Monitor
from podlane.agent.node_conditions import Availability, NodeConditions, lacking
from podlane.agent.on_demand import OnDemand
from podlane.agent.options import AgentOptions, facts_of
from podlane.agent.pin_monitor import PinMonitor
from podlane.agent.proxy import Proxy
from podlane.agent.rebalancing import Rebalancing
from podlane.agent.reconciler import Observation, Reconciler
from podlane.agent.ruleset_monitor import RulesetMonitor
from podlane.agent.sockets import SocketPages
from podlane.agent.surroundings import Watch
from podlane.agent.uplink import Uplink
from podlane.compile.engine import Compiler, capabilities
from podlane.compile.tables import Table
from podlane.compile.view import ATTACHMENT, CLUSTER_WIDE, Change
from podlane.compile.wireguard import KEY_ANNOTATION
from podlane.engines.bird.driver import BirdDriver
from podlane.engines.udp.driver import UdpDriver
from podlane.engines.wireguard.driver import WireguardDriver
from podlane.errors import ConfigError, PodlaneError
from podlane.kernel.announce.driver import AnnounceDriver
from podlane.kernel.bpf.sockets import SocketDriver
from podlane.kernel.driver import Driver, Failure
from podlane.kernel.nft import policy_chains, senders, skeleton
from podlane.model.agents import AGENT_ANNOTATION
from podlane.model.config import LinkMode, NetworkConfig
from podlane.model.local import Attachment
from podlane.model.objects import Object
from podlane.watch.backoff import Gate
from podlane.watch.follow import Progress, follow
from podlane.watch.http import ApiHttp
from podlane.watch.reflector import News, Upsert

log = logging.getLogger(__name__)

POD_SHOWN_S = 2.0

PUBLIC = ("/healthz", "/livez", "/readyz", "/metrics")


class Agent:
    """One node's agent. `run` returns when `stop` is set, or raises what ended it."""

    def __init__(
        self, options: AgentOptions, config: NetworkConfig, api: ApiHttp, drivers: Sequence[Driver]
    ) -> None:
        self.options, self.config = options, config
        self._drivers = drivers
        # Without services another proxy serves them; what leaves the cluster is masqueraded all the same.
        absent = set() if options.services else {"services", "announce", "advertise"}
        if not options.policy:
            absent.add("policy")
        only = [c for c in capabilities() if c.name not in absent]
        self.compiler = Compiler(options.node_name, config, only)
        self.reconciler = Reconciler(
            self.compiler, drivers, changed=self._after_generation, observed=self._observed
        )
        self._proxy = Proxy(self.compiler, self.reconciler, drivers) if options.services else None
        self._rebalancing = Rebalancing(self.compiler.view, config.services, lambda: self.reconciler.synced)
        self._events = Events(api, options.node_name)
        self._complained_about: Any = None
        at_socket = (SocketPages(options.node_name, d) for d in drivers if isinstance(d, SocketDriver))
        self._sockets = next(at_socket, None)
        self._api = api
        self.counted = AgentMetrics()
        self._sources = sources(self.compiler.reads)
        self._progress = {source.kind: Versions() for source in self._sources}
        self._announcer = Announcer(api, lambda: self.compiler.view.me.node)
        self.conditions = NodeConditions(api, lambda: self.compiler.view.me.node)
        self._availability = Availability(self.conditions, lambda: self.ready, self._lacking)
        self._degradation = Degradation(
            self.conditions, lambda: degraded(self.compiler, self.reconciler.failures)
        )
        self._surroundings = Watch(
            options, config, self.conditions, uplink=self._uplink_device, left=lambda: self._left
        )
        self._announcements = Announcements(options.node_name, self.compiler.view, api)
        self._attachments = Attachments(
            options, self.compiler, self.attachment_changed, self._node_listed, self.counted.answered
        )
        self._uplink = Uplink(self.compiler, self.reconciler, self._announcer, self._settings, self._complain)
        self._backends = Backends(
            self.compiler, self.reconciler, self._announcer, Path(options.agent_socket).parent
        )
        self._metrics = MetricsPage(
            self.compiler,
            self.counted,
            state=self.state,
            use=self._attachments.use,
            requests=api.requests,
            proxy=self._proxy,
            sockets=self._sockets,
        )
        self._install_refused = ""
        self._settled = False
        self._settled_event = asyncio.Event()
        self._takeover: asyncio.Task[None] | None = None

    # --- life ---

    async def run(self, stop: asyncio.Event) -> None:
        pages: dict[str, http.Page] = {
            "/healthz": lambda: http.text("ok"),
            "/livez": lambda: http.text("ok"),
            "/readyz": self._readyz,
            "/metrics": self._metrics.page,
            **(self._proxy.pages if self._proxy else {}),
            "/status": lambda: http.as_json(report.status(self.state())),
            "/tables": lambda: http.as_json(report.tables(self.options.node_name, self.compiler.tables)),
        }
        if self._sockets is not None:
            pages["/sockets"] = self._sockets.page
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._api)
            window = http.Server(pages, asked=self._metrics.asked)
            stack.push_async_callback(window.close)
            await window.listen_unix(Path(self.options.agent_socket))
            stack.push_async_callback(self._attachments.close)
            # The first resync finds the rows of an earlier life's attachments in the kernel.
            held = await self._attachments.start()
            self.compiler.apply(Change(ATTACHMENT, None, each) for each in held)
            if self.options.metrics_address:
                shown = {p: pages[p] for p in PUBLIC if p in pages}
                public = http.Server(shown, asked=self._metrics.asked)
                stack.push_async_callback(public.close)
                await public.listen(self.options.metrics_address)
            monitor = Monitor(
                self.compiler.tables,
                self._damaged,
                self._uplink.changed,
                routed=bool(self.config.underlay.can_reach),
            )
            stack.callback(monitor.close)
            resync = self.reconciler.request_resync
            ruleset = RulesetMonitor(
                {
                    skeleton.TABLE: lambda: resync(Table.FRONTENDS),
                    policy_chains.TABLE: lambda: resync(Table.GUARDS),
                    senders.TABLE: lambda: resync(Table.SENDERS),
                },
                others=self._surroundings.changed,
            )
            stack.callback(ruleset.close)
            if self._sockets is not None:
                pins = PinMonitor(
                    Path(self.options.bpf_dir), lambda: self.reconciler.request_resync(Table.SETS)
                )
                stack.callback(pins.close)
            self._loop = asyncio.get_running_loop()
            for driver in self._drivers:
                if isinstance(driver, OnDemand):
                    driver.told = self._made
                    if driver.driver is not None:
                        self._made(driver.driver)
                    stack.callback(driver.close)
                elif isinstance(driver, HealthChecks):
                    stack.push_async_callback(driver.close)
                elif isinstance(driver, AnnounceDriver):
                    self._announcements.listen(driver)
                    stack.callback(driver.close)
            tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self.reconciler.run(), name="reconciler")]
            tasks.append(asyncio.create_task(self._events.run(), name="events"))
            gate = Gate(random.Random())
            tasks += [
                asyncio.create_task(
                    follow(source, self._api, self._deliver, self._heard, gate=gate), name=source.kind
                )
                for source in self._sources
            ]
            tasks.append(asyncio.create_task(self._announcer.run(), name="announcer"))
            tasks.append(asyncio.create_task(self.conditions.run(), name="node conditions"))
            tasks.append(asyncio.create_task(self._availability.run(), name="availability"))
            tasks.append(asyncio.create_task(self._degradation.run(), name="degradation"))
            tasks.append(asyncio.create_task(self._watch_surroundings(), name="surroundings"))
            rebalancing = self._rebalancing.run(self.reconciler.submit)
            tasks.append(asyncio.create_task(rebalancing, name="rebalancing"))
            tasks.append(asyncio.create_task(self._announcements.run(), name="announcements"))
            stack.push_async_callback(_cancel, tasks)
            stack.push_async_callback(self._attachments.stop_serving)
            await self._attachments.serve()
            notify.say("READY=1")
            stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait(), name="stop")
            tasks.append(stopped)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task is not stopped:
                    # Nothing here ends by itself: let whoever keeps the agent start it anew.
                    task.result()

    def _made(self, driver: Driver) -> None:
        """A backend's driver came to be; on whichever thread."""
        loop, resync = self._loop, self.reconciler.request_resync
        if isinstance(driver, WireguardDriver):
            loop.call_soon_threadsafe(self._announcer.say, {KEY_ANNOTATION: driver.public})
        elif isinstance(driver, BirdDriver):
            driver.died = lambda: _in(loop, resync, Table.SPEAKER)
            self._metrics.bird = driver
        elif isinstance(driver, UdpDriver):
            driver.died = lambda: _in(loop, resync, Table.TUNNELS)
            self._metrics.udp = driver

    # --- news of the API ---

    def _deliver(self, kind: str, news: News[Object]) -> None:
        if isinstance(news, Upsert) and self._is_known(kind, news.object):
            return
        number = self.reconciler.submit(self._changes(kind, news))
        if self.reconciler.synced:
            self.counted.told(kind, number, time.monotonic())
        if self._proxy:
            self._proxy.told(kind, news, number)

    def _is_known(self, kind: str, value: Object) -> bool:
        """A heartbeat, or whatever else the network does not read: most of what happens to nodes and pods.

        Not this node's own Node, which may come back unchanged after it was gone.
        """
        if not self.reconciler.taken_in or (kind == "Node" and value.name == self.options.node_name):
            return False
        return self.compiler.view.knows(kind, value)

    def _changes(self, kind: str, news: News[Object]) -> Iterator[Change]:
        """News as changes of what is known when their turn comes, and what follows from them."""
        for change in changes(kind, news, self.compiler.view):
            yield change
            yield from self._rebalancing.follow(change, time.monotonic())

    def _heard(self, progress: Progress) -> None:
        versions = self._progress[progress.reflector.source.kind]
        versions.error = progress.error
        versions.malformed = progress.reflector.malformed
        if not progress.error:
            self.counted.heard(progress.reflector, time.time())
        if progress.reflector.synced:
            versions.saw(self.reconciler.submitted, progress.reflector.version)
            self._maybe_sync()

    def _damaged(self, tables: set[Table]) -> None:
        if Table.TUNNELS in tables:
            tables.add(Table.ROUTES)  # they went with the device, and the kernel does not say so
        self.reconciler.request_resync(*tables)

    # --- after a generation ---

    def _after_generation(self) -> None:
        applied = self.reconciler.applied
        self.counted.applied(applied, time.monotonic())
        if self._proxy:
            self._proxy.applied(applied)
        self._uplink.follow()
        self.conditions.look()
        self._attachments.remember()
        self._maybe_sync()
        if self.reconciler.synced:
            self._backends.follow()
        self._complain()
        if self.reconciler.synced and not self._settled:
            self._settled = True
            self._settle()

    def _complain(self) -> None:
        if not self.reconciler.synced:
            return  # what is missing is still on its way
        about = self.compiler.complaints, self.reconciler.failures, self._uplink.complaint
        if about != self._complained_about:
            self._complained_about = about
            self._events.say(complaints(self.compiler, *about[1:]), self._uid_of)

    def _uid_of(self, complaint: Complaint) -> str:
        key: Any = complaint.name if complaint.kind in CLUSTER_WIDE else complaint[1:3]
        found = self.compiler.view.objects(complaint.kind).get(key)
        return found.metadata.uid if found is not None else ""

    def _observed(self, observation: Observation) -> None:
        self.counted.observed(observation)
        if self._proxy:
            self._proxy.observed(observation)

    def _settings(self, uplink: str) -> list[sysctls.Setting]:
        return sysctls.wanted(
            self.config.ip_families,
            uplink,
            sysctls.read,
            bridged=self.config.link.mode is LinkMode.BRIDGE,
            serving=self.options.services,
            counted=self.options.services and self.config.services.flow_accounting,
            from_loopback=self.options.services and self.config.services.localhost_node_ports,
        )

    # --- attachments ---

    async def attachment_changed(self, old: Attachment | None, new: Attachment | None) -> None:
        """Returns when the generation that holds it was applied. Raises KernelError if a row was refused.

        With policy a pod begins isolated, and with what is allowed to it as soon as the API shows the pod.
        That is waited for, but not for long: until then nothing passes.
        """
        devices = filter(None, (new.device, new.bridge)) if new else ()
        began_s = time.monotonic()
        await self.reconciler.commit([Change(ATTACHMENT, old, new)], *devices)
        self.counted.programming.of(ATTACHMENT).observe(time.monotonic() - began_s)
        if new is None:
            return
        if self.options.policy and not await self.reconciler.wait_for(
            lambda: self._guarded(new), POD_SHOWN_S
        ):
            name = f"{new.pod_namespace}/{new.pod_name}"
            log.warning("pod %s is attached, but the API does not show it yet: nothing passes", name)
        for failure in self.reconciler.failures:
            if concerns(failure, new):
                raise failure.error

    def _guarded(self, attachment: Attachment) -> bool:
        """What policy says of a new link is known. One that is no pod's it leaves alone."""
        guard = self.compiler.tables[Table.GUARDS].get(attachment.device)
        return not attachment.pod_name or (self.reconciler.synced and guard is not None and guard.known)

    # --- when is it ready ---

    def _blockers(self) -> list[str]:
        """What the first resync waits for, as sentences for the status."""
        applied = self.reconciler.applied
        unlisted = [kind for kind, versions in self._progress.items() if not versions.applied(applied)]
        waiting = [f"{kind} has not been listed yet{self._why(kind)}" for kind in unlisted]
        me = self.compiler.view.me
        if "Node" in unlisted:
            pass
        elif me.node is None:
            waiting.append(f"there is no Node {me.name} in the API yet")
        elif not (me.node.spec.pod_cidrs or me.node.spec.pod_cidr):
            waiting.append(f"the Node {me.name} has no podCIDR yet")
        elif me.underlay is None:
            waiting.append(self._uplink.complaint or "the uplink is being looked for")
        return waiting

    def _node_listed(self) -> bool:
        return bool(self._progress["Node"].applied(self.reconciler.applied))

    def _why(self, kind: str) -> str:
        error = self._progress[kind].error
        return f": {error}" if error else ""

    def _maybe_sync(self) -> None:
        if not self.reconciler.synced and not self._blockers():
            self.reconciler.allow_sync()

    def _settle(self) -> None:
        self._uplink.apply_settings()
        self._takeover = asyncio.create_task(self._finish_takeover(), name="takeover")
        collector.settle()
        try:
            install.install(self.options, take_over=self.config.others.take_over)
        except ConfigError as error:
            self._install_refused = str(error)
            log.warning("%s", error)
        log.info("node %s holds what the API says", self.options.node_name)
        self._announcer.say({AGENT_ANNOTATION: facts_of(self.options, self.config).annotation})
        self._settled_event.set()
        self._availability.settled()
        self._degradation.settled()

    def _uplink_device(self) -> str:
        underlay = self.compiler.view.me.underlay
        return underlay.device if underlay else ""

    @property
    def _left(self) -> list[str]:
        return list(map(str, self._attachments.left))

    def _lacking(self) -> list[str]:
        """What of this node's own network is not there, as sentences."""
        if not self.ready:
            return self._blockers() or ["the kernel is being compared with what the API says"]
        found = [self._install_refused] if self._install_refused else []
        return [*found, *lacking(self.compiler, self.reconciler.failures)]

    async def _watch_surroundings(self) -> None:
        """From the first generation on: the agent has made its settings by then."""
        await self._settled_event.wait()
        await self._surroundings.run()

    async def _finish_takeover(self) -> None:
        try:
            await self._attachments.finish_takeover()
        except (PodlaneError, OSError) as error:
            log.warning("the takeover of another plugin's pods is not complete: %s", error)

    @property
    def ready(self) -> bool:
        """The first resync is through, and what follows it: the plugin is installed."""
        return self._settled

    # --- the window ---

    def state(self) -> report.State:
        compiler, reconciler = self.compiler, self.reconciler
        refused = [sentence for each in compiler.refused.values() for sentence in each]
        refused += map(str, compiler.contradictions)
        refused += filter(None, [self._install_refused, self._announcer.error, self.conditions.error])
        refused += filter(None, [self._backends.complaint])
        refused += [self._uplink.complaint] if self.ready and self._uplink.complaint else []
        applied: dict[str, str] = {}
        for kind, versions in self._progress.items():
            refused += [f"{kind} {'/'.join(filter(None, k))}: {e}" for k, e in versions.malformed.items()]
            version = versions.applied(reconciler.applied)
            if version and reconciler.synced:
                applied[kind] = version
        failures = reconciler.failures
        failures += [Failure(Table.LINKS, "sysctl", error) for error in self._uplink.refused]
        return report.State(
            node=self.options.node_name,
            ready=self.ready,
            blockers=[] if self.ready else self._blockers(),
            counts=reconciler.counts,
            pending=reconciler.pending + self._announcer.pending,
            failures=failures,
            refused=refused,
            applied=applied,
            away={kind: versions.error for kind, versions in self._progress.items() if versions.error},
            tables=compiler.tables,
            units_compiled=compiler.units_compiled,
            rows_compared=compiler.rows_compared,
            attachments=len(compiler.view.me.attachments),
            announced=self._announcements.held,
            waiting_s=reconciler.waiting_s,
            conflicts=tuple(self._surroundings.found),
        )

    def _readyz(self) -> http.Answer:
        return http.text("ok") if self.ready else http.text("\n".join(self._blockers() or ["wait"]), 503)


def _in(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    with suppress(RuntimeError):  # it is over
        loop.call_soon_threadsafe(call, *arguments)


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
