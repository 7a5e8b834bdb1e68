from __future__ import annotations

import click

ON_OFF = click.Choice(["on", "off"])


@click.command()
@click.option(
    "--kubeconfig", metavar="FILE", default="", help="How to reach the API; unset: as kubectl does."
)
@click.option("--context", default="", help="Context of the kubeconfig.")
@click.option(
    "--api-server",
    metavar="URL",
    multiple=True,
    help="Instead of the kubeconfig's server; may be given several times.",
)
@click.option("--node-name", required=True, help="Name of this node's Node object.")
@click.option("--config", metavar="FILE", default="/etc/podlane/config.yaml", help="NetworkConfig.")
@click.option("--state-dir", metavar="DIR", default="/var/lib/podlane", help="Address leases.")
@click.option("--cni-socket", metavar="PATH", default="/run/podlane/cni.sock", help="Where the plugin asks.")
@click.option("--cni-bin-dir", metavar="DIR", default="", help="Install the plugin here when ready.")
@click.option("--cni-conf-dir", metavar="DIR", default="", help="Install the conflist here when ready.")
@click.option(
    "--host-local-dir",
    metavar="DIR",
    default="/var/lib/cni/networks",
    help="Leases of another plugin's pods, not given out.",
)
@click.option(
    "--cni-cache-dir",
    metavar="DIR",
    default="/var/lib/cni/results",
    help="What the runtime remembers of pods that others.takeOver takes over.",
)
@click.option("--agent-socket", metavar="PATH", default="/run/podlane/agent.sock", help="HTTP: /status.")
@click.option("--metrics-address", metavar="IP:PORT", default="", help="/healthz /livez /readyz /metrics.")
@click.option("--bpf-dir", metavar="DIR", default="/sys/fs/bpf/podlane", help="Pins of services.mode socket.")
@click.option("--cgroup", metavar="DIR", default="", help="Whose sockets that serves; all by default.")
@click.option(
    "--proc-sys", metavar="DIR", default="/proc/sys", help="Where the machine's /proc/sys can be written."
)
@click.option("--services", type=ON_OFF, default="on", show_default=True, help="ClusterIP and node ports.")
@click.option("--policy", type=ON_OFF, default="on", show_default=True, help="Enforce NetworkPolicy.")
@click.option("--dns", type=ON_OFF, default="off", show_default=True, help="DNS (not yet there).")
@click.option("--standalone", is_flag=True, help="No API: only the CNI plugin types and their leases.")
@click.option(
    "--pod-cidr", metavar="CIDR", multiple=True, help="With --standalone: addresses for the type podlane."
)
def command(
    kubeconfig: str,
    context: str,
    api_server: tuple[str, ...],
    node_name: str,
    config: str,
    state_dir: str,
    cni_socket: str,
    cni_bin_dir: str,
    cni_conf_dir: str,
    host_local_dir: str,
    cni_cache_dir: str,
    agent_socket: str,
    metrics_address: str,
    bpf_dir: str,
    cgroup: str,
    proc_sys: str,
    services: str,
    policy: str,
    dns: str,
    standalone: bool,
    pod_cidr: tuple[str, ...],
) -> None:
    """Run the node agent in the network namespace it is started in.

    It needs CAP_NET_ADMIN and CAP_SYS_ADMIN. Stopping it leaves the node's network in place.

    Example: podlane agent --kubeconfig /etc/podlane/kubeconfig --node-name $(hostname)
    Example: podlane agent --standalone --node-name $(hostname) --cni-bin-dir /opt/cni/bin
    """
    from podlane.agent.main import main
    from podlane.agent.options import AgentOptions
    from podlane.errors import UsageError

    if standalone and kubeconfig:
        raise UsageError("--standalone uses no API: leave --kubeconfig out")
    if pod_cidr and not standalone:
        raise UsageError("--pod-cidr goes with --standalone: in a cluster the Node object has it")
    if dns == "on":
        click.echo("podlane: --dns on has no effect yet", err=True)
    main(
        AgentOptions(
            node_name=node_name,
            kubeconfig=kubeconfig,
            context=context,
            api_servers=list(api_server),
            config=config,
            state_dir=state_dir,
            cni_socket=cni_socket,
            cni_bin_dir=cni_bin_dir,
            cni_conf_dir=cni_conf_dir,
            host_local_dir=host_local_dir,
            cni_cache_dir=cni_cache_dir,
            agent_socket=agent_socket,
            metrics_address=metrics_address,
            bpf_dir=bpf_dir,
            cgroup=cgroup,
            proc_sys=proc_sys,
            services=services == "on",
            policy=policy == "on",
            dns=dns == "on",
            standalone=standalone,
            pod_cidrs=list(pod_cidr),
        )
    )
