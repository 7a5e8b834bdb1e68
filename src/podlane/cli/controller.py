from __future__ import annotations

import click


@click.command()
@click.option(
    "--kubeconfig", metavar="FILE", default="", help="How to reach the API; unset: as kubectl does."
)
@click.option("--context", metavar="NAME", default="", help="Context of the kubeconfig.")
@click.option(
    "--api-server",
    metavar="URL",
    multiple=True,
    help="Instead of the kubeconfig's server; may be given several times.",
)
@click.option("--config", metavar="FILE", default="/etc/podlane/config.yaml", help="NetworkConfig.")
@click.option("--metrics-address", metavar="IP:PORT", default="", help="HTTP: /healthz /readyz /metrics.")
@click.option(
    "--lease-duration",
    metavar="SECONDS",
    type=click.IntRange(2, 3600),
    default=15,
    show_default=True,
    help="After how long of silence another leads.",
)
@click.option(
    "--lease-namespace",
    metavar="NAME",
    default="kube-system",
    show_default=True,
    help="Where the Lease podlane-controller is.",
)
@click.option(
    "--release",
    is_flag=True,
    help="Take back what agents and controllers left in Services and Nodes, and end. They must be gone.",
)
def command(
    kubeconfig: str,
    context: str,
    api_server: tuple[str, ...],
    config: str,
    metrics_address: str,
    lease_duration: int,
    lease_namespace: str,
    release: bool,
) -> None:
    """Run the cluster's controller: load-balancer addresses from LoadBalancerPools.

    Several may run; one leads (Lease podlane-controller), the others wait. A lab has it built in.

    Example: podlane controller --kubeconfig /etc/podlane/kubeconfig --metrics-address 127.0.0.1:9586
    """
    from podlane.controller import daemon

    options = daemon.ControllerOptions(
        kubeconfig=kubeconfig,
        context=context,
        api_servers=api_server,
        config=config,
        metrics_address=metrics_address,
        lease_duration_s=lease_duration,
        lease_namespace=lease_namespace,
    )
    if release:
        daemon.give_back(options, lambda what: click.echo(f"released: {what}"))
    else:
        daemon.main(options)
