from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
@click.option("-n", "--namespace", metavar="NS", help="Namespace (default: all, with NAME default).")
@click.option("--lab", metavar="NAME", help="Which lab (default: lab).")
@click.option("--kubeconfig", metavar="FILE", help="A cluster that is no lab.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option("--config", metavar="FILE", help="NetworkConfig of the cluster that --kubeconfig names.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(
    name: str | None,
    namespace: str | None,
    lab: str | None,
    kubeconfig: str | None,
    context: str | None,
    config: str | None,
    output: str,
) -> None:
    """Show services, or all there is to say of service NAME: its addresses, its endpoints, and which of
    them each node chooses, how and why. From what the API holds; a lab's nodes are also asked for the
    connections that each endpoint has.

    \b
    Examples:
      podlane services
      podlane services web -n shop
      podlane services -o json
    """
    from podlane.lab import snapshot
    from podlane.observe.cluster import Cluster
    from podlane.observe.flows import flows, loads
    from podlane.observe.service_text import list_lines, report_lines
    from podlane.observe.services import services

    with snapshot.look(lab, kubeconfig, context, config) as look:
        cluster = Cluster(snapshot.objects(look.client))
        # Asking the nodes costs little in a lab, and there is nobody to ask elsewhere.
        found = snapshot.conntrack(look.record) if look.record else None
    load = loads(flows(cluster, found)) if found is not None else None
    if name:
        wanted = [cluster.service(namespace or "default", name)]
    else:
        wanted = [s for _, s in sorted(cluster.services.items()) if namespace in (None, s.namespace)]
    told = services(cluster, look.config, wanted, load)
    if output == "json":
        click.echo(told.json())
        return
    for line in report_lines(told.items[0]) if name else list_lines(told):
        click.echo(line)
