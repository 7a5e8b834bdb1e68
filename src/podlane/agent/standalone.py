"""`podlane agent --standalone`: no API; only the CNI plugin types and their leases.

`podlane` is among them where --pod-cidr says whose addresses it gives (standalone_pods.py).

For a node whose container runtime is given configurations written for the reference plugins. It acts on
the network namespace it is started in, and ends by SIGTERM or SIGINT with everything left in place.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from podlane.agent import http, install, notify
from podlane.agent.metrics import AgentMetrics
from podlane.agent.options import AgentOptions
from podlane.agent.standalone_pods import StandalonePods, pools_of
from podlane.cni import plugins
from podlane.cni.service import CniService
from podlane.errors import ConfigError
from podlane.observe import process
from podlane.observe.exposition import CONTENT_TYPE, exposition

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def main(options: AgentOptions) -> None:
    """Raises ConfigError for paths and pod CIDRs that cannot be used."""
    pools_of(options.pod_cidrs)
    try:
        for text in (options.state_dir, options.cni_conf_dir):
            if text:
                Path(text).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    asyncio.run(run(options))


def metrics_of(counted: AgentMetrics) -> http.Answer:
    """The metrics of CNI and of the process: there is nothing else here."""
    text = exposition("podlane_agent_", counted.of_cni()) + process.text("agent")
    return http.Answer(200, text.encode(), CONTENT_TYPE)


async def run(options: AgentOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    counted = AgentMetrics()
    pages: http.Pages = {
        "/healthz": lambda: http.text("ok"),
        "/readyz": lambda: http.text("ok"),
        "/metrics": lambda: metrics_of(counted),
    }
    boot_id, types = BOOT_ID.read_text().strip(), plugins.load()
    async with AsyncExitStack() as stack:
        if options.pod_cidrs:
            pods = StandalonePods(options, boot_id)
            stack.push_async_callback(pods.close)
            await pods.start()
            types[pods.kind.name] = pods.kind
        service = CniService(
            Path(options.state_dir), Path(options.cni_socket), boot_id, types, observed=counted.answered
        )
        stack.push_async_callback(service.close)
        stack.push_async_callback(service.stop_serving)
        await service.serve()
        window = http.Server(pages)
        stack.push_async_callback(window.close)
        await window.listen_unix(Path(options.agent_socket))
        if options.metrics_address:
            public = http.Server(pages)
            stack.push_async_callback(public.close)
            await public.listen(options.metrics_address)
        for path in install.program(options):
            log.warning("%s is not podlane's and stays: that type is not served by podlane", path)
        log.info("node %s serves CNI at %s", options.node_name, options.cni_socket)
        notify.say("READY=1", "STATUS=serves CNI")
        await stop.wait()
