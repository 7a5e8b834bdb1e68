"""What the agent is told at its start; every path is an option, so that several may run on one machine."""

from __future__ import annotations

from typing import Any

import msgspec

from podlane import __version__
from podlane.cni.address_files import DATA_DIR
from podlane.cni.runtime_cache import RESULTS_DIR
from podlane.errors import ConfigError
from podlane.model.agents import AgentFacts, digest
from podlane.model.config import NetworkConfig
from podlane.watch.configuration import CONFIG_PATH

__all__ = ["CONFIG_PATH", "AgentOptions", "parse"]


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """api_servers: URLs instead of the kubeconfig's one, each as good as the others.
    config: NetworkConfig file; at its default it may be absent. metrics_address: IP:PORT, "" for none.

    host_local_dir: where pods of another plugin have their leases, which are not given out; "" for none.
    cni_cache_dir: what the runtime remembers of pods, for others.takeOver.
    agent_socket: unix HTTP (/healthz /livez /readyz /metrics /status /tables). services: ClusterIP and node
    ports are programmed. bpf_dir, cgroup: of services.mode socket: where maps and programs are pinned,
    whose sockets are served ("": the whole machine's). policy: NetworkPolicy is enforced. proc_sys: where the
    machine's /proc/sys can be written; its `net` is enough. dns: accepted, without effect so far.
    standalone: no API, only the CNI plugin types and their leases.
    """

    node_name: str
    kubeconfig: str = ""
    context: str = ""
    api_servers: list[str] = []
    config: str = CONFIG_PATH
    state_dir: str = "/var/lib/podlane"
    cni_socket: str = "/run/podlane/cni.sock"
    cni_bin_dir: str = ""
    cni_conf_dir: str = ""
    agent_socket: str = "/run/podlane/agent.sock"
    metrics_address: str = ""
    bpf_dir: str = "/sys/fs/bpf/podlane"
    cgroup: str = ""
    host_local_dir: str = DATA_DIR
    proc_sys: str = "/proc/sys"
    cni_cache_dir: str = RESULTS_DIR
    services: bool = True
    policy: bool = True
    dns: bool = False
    standalone: bool = False
    pod_cidrs: list[str] = []
    log_level: str = "info"
    log_format: str = "text"


def facts_of(options: AgentOptions, config: NetworkConfig) -> AgentFacts:
    """What the agent says of itself at its Node."""
    return AgentFacts(
        version=__version__,
        backend=str(config.backend.type),
        config=digest(config),
        families=[str(family) for family in config.ip_families],
        services=options.services,
        policy=options.policy,
    )


def parse(options: dict[str, Any]) -> AgentOptions:
    """Raises ConfigError naming the option."""
    try:
        return msgspec.convert(options, AgentOptions)
    except msgspec.ValidationError as error:
        raise ConfigError(f"agent options: {error}") from None
