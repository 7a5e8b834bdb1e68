from __future__ import annotations

import click


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT][/PROTO]")
@click.option("--lab", metavar="NAME", help="Which lab (default: lab).")
@click.option("--kubeconfig", metavar="FILE", help="A cluster that is no lab.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option("--config", metavar="FILE", help="NetworkConfig of the cluster that --kubeconfig names.")
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of bare names.")
@click.option("--family", type=click.Choice(["IPv4", "IPv6"]), help="Default: the first that both ends have.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(
    source: str,
    destination: str,
    lab: str | None,
    kubeconfig: str | None,
    context: str | None,
    config: str | None,
    namespace: str,
    family: str | None,
    output: str,
) -> None:
    """Tell a packet's way and verdict, from what the API holds and the nodes' tables; nothing is sent.

    SRC and DST: pod/NAME, NS/pod/NAME, svc/NAME, NS/svc/NAME, node/NAME, outside, or an address (IPv6 with
    a port as [ADDRESS]:PORT). Exits 0 whatever the verdict is.

    \b
    Examples:
      podlane explain pod/client svc/web:80
      podlane explain outside svc/tomcat:http -o json
      podlane explain node/node-1 pod/web-1:80/tcp --family IPv6
    """
    from podlane.lab import snapshot
    from podlane.model.addresses import Family, address
    from podlane.observe.cluster import Cluster
    from podlane.observe.explain import explain
    from podlane.observe.targets import parse_destination, parse_source
    from podlane.observe.text import explanation_lines

    begins, ends = parse_source(source, namespace), parse_destination(destination, namespace)
    with snapshot.look(lab, kubeconfig, context, config) as look:
        outside = map(address, look.record.outside) if look.record else ()
        cluster = Cluster(snapshot.objects(look.client), outside)
        told = explain(
            cluster,
            cluster.party(begins),
            cluster.party(ends),
            look.config,
            family=Family(family) if family else None,
        )
    if output == "json":
        click.echo(told.json())
    else:
        for line in explanation_lines(told):
            click.echo(line)
