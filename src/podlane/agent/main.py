"""The node agent's process: options in, signals, and the end of it.

It acts on the network namespace it is started in. SIGTERM and SIGINT end it and leave everything in
place; SIGHUP compares kernel and tables anew.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from podlane import logs
from podlane.agent import collector, notify
from podlane.agent.daemon import Agent
from podlane.agent.gone import GonePods
from podlane.agent.health_checks import HealthChecks
from podlane.agent.on_demand import OnDemand
from podlane.agent.options import CONFIG_PATH, AgentOptions, parse
from podlane.compile.peers import WAYS
from podlane.compile.tables import Table
from podlane.engines.bird import driver as bird
from podlane.engines.bird.driver import BirdDriver
from podlane.engines.udp import driver as udp
from podlane.engines.udp.driver import UdpDriver
from podlane.engines.wireguard import driver as wireguard
from podlane.engines.wireguard.driver import WireguardDriver
from podlane.kernel import cgroups, sysctl
from podlane.kernel.announce.driver import AnnounceDriver
from podlane.kernel.bpf import installation
from podlane.kernel.bpf.sockets import SocketDriver
from podlane.kernel.driver import Driver
from podlane.kernel.ipip import driver as ipip
from podlane.kernel.ipip.driver import IpipDriver
from podlane.kernel.nft.policy import PolicyDriver
from podlane.kernel.nft.senders import SendersDriver
from podlane.kernel.nft.services import ServicesDriver
from podlane.kernel.rtnl.driver import RtnlDriver
from podlane.kernel.sweeping import Gone
from podlane.model.backends import BackendType
from podlane.model.config import NetworkConfig, ServiceMode
from podlane.watch import configuration, kubeconfig
from podlane.watch.http import ApiHttp

log = logging.getLogger(__name__)

__all__ = ["AgentOptions", "run"]


def run(options: dict[str, Any]) -> None:
    """Entry for a supervisor: options as AgentOptions has them. Returns when told to stop."""
    from podlane.logs import configure

    parsed = parse(options)
    configure(parsed.log_level, parsed.log_format)
    main(parsed)


def main(options: AgentOptions) -> None:
    """Raises ConfigError before anything is touched."""
    sysctl.locate(options.proc_sys)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    sysctl.keep_journal(Path(options.state_dir) / sysctl.JOURNAL, boot_id)
    if options.standalone:
        from podlane.agent import standalone

        standalone.main(options)
        return
    config = read_config(options.config)
    access = kubeconfig.load(options.kubeconfig or None, options.context, options.api_servers)
    Path(options.state_dir).mkdir(parents=True, exist_ok=True)
    collector.relax()
    asyncio.run(_main(options, config, access))


async def _main(options: AgentOptions, config: NetworkConfig, access: kubeconfig.Access) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    api = ApiHttp(access)
    gone = GonePods(api, config, loop)
    found = drivers(options, config, gone.among)
    agent = Agent(options, config, api, found)
    gone.view = agent.compiler.view
    logs.about(options.node_name, lambda: agent.reconciler.counts.generation)
    loop.add_signal_handler(signal.SIGHUP, agent.reconciler.request_resync)
    told = asyncio.create_task(notify.keep_telling(lambda: _sentence(agent)), name="notify")
    try:
        await agent.run(stop)
    finally:
        notify.say("STOPPING=1")
        told.cancel()


def _sentence(agent: Agent) -> str:
    state = agent.state()
    failed = f", {len(state.failures)} rows refused" if state.failures else ""
    return "; ".join(state.blockers) or (f"ready, generation {state.counts.generation}{failed}")


def drivers(options: AgentOptions, config: NetworkConfig, gone: Gone | None = None) -> list[Driver]:
    """In the order in which a generation is applied. Raises UnsupportedError."""
    found: list[Driver] = [RtnlDriver(), ServicesDriver(config, serve=options.services, gone=gone)]
    policy = PolicyDriver(config)
    if options.policy:
        # From here on nothing passes of a pod that nobody has told us of, whatever else is not there yet.
        policy.prepare()
        found.insert(0, policy)
    else:
        policy.remove()
        policy.close()
    pins = Path(options.bpf_dir)
    if options.services and config.services.mode is ServiceMode.SOCKET:
        installation.require(pins)
        site = installation.Site(pins, Path(options.cgroup) if options.cgroup else cgroups.mount_point())
        found.insert(-1, SocketDriver(config, site, gone=gone))
    elif installation.remove(pins):
        log.info("services are no longer answered at the socket: what was pinned at %s is gone", pins)
    beside = Path(options.agent_socket).parent
    state, own = Path(options.state_dir), config.backend.type
    found.insert(
        1,
        OnDemand(
            bird.TABLES,
            lambda table, row: True,
            lambda: BirdDriver(beside / "bird"),
            lambda: bird.stop(beside / "bird"),
            now=config.speaks_bgp,
        ),
    )
    # Routes lead to tunnels' devices: these are there first.
    found.insert(
        0,
        OnDemand(
            wireguard.TABLES,
            _into(WAYS[BackendType.WIREGUARD].tunnel),
            lambda: WireguardDriver(config, beside / "wireguard", state),
            lambda: wireguard.stop(beside / "wireguard"),
            now=own is BackendType.WIREGUARD,
        ),
    )
    found.insert(
        0,
        OnDemand(
            udp.TABLES,
            _into(WAYS[BackendType.UDP].tunnel),
            lambda: UdpDriver(beside / "udp"),
            lambda: udp.stop(beside / "udp"),
            now=own is BackendType.UDP,
        ),
    )
    found.insert(
        0,
        OnDemand(
            ipip.TABLES,
            _into(WAYS[BackendType.IPIP].tunnel),
            IpipDriver,
            ipip.remove,
            now=own is BackendType.IPIP,
        ),
    )
    if options.services:
        found += [HealthChecks(asyncio.get_running_loop()), AnnounceDriver()]
    # Nothing of a pod is sent on before it is known what it may send.
    return [SendersDriver(config), *found]


def _into(device: str) -> Callable[[Table, Any], bool]:
    """Whether a row is of that tunnel."""
    return lambda table, row: bool((row.name if table is Table.TUNNELS else row.device) == device)


def read_config(path: str) -> NetworkConfig:
    """The default configuration when the default path has no file. Raises ConfigError."""
    return configuration.read(path, default_path=CONFIG_PATH)
