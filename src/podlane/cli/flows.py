from __future__ import annotations

import click


@click.command()
@click.option("--service", metavar="[NS/]NAME", help="Only connections through this service.")
@click.option("--pod", metavar="[NS/]NAME", help="Only connections from or to this pod.")
@click.option("--node", metavar="NAME", help="Only connections of this node.")
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of bare names.")
@click.option("--watch", is_flag=True, help="Go on: a line for each connection that comes (+) or ends (-).")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often --watch looks.",
)
@click.option("--lab", metavar="NAME", help="Which lab (default: lab).")
@click.option(
    "--kubeconfig", metavar="FILE", help="A cluster that is no lab: the connections of this machine."
)
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(
    service: str | None,
    pod: str | None,
    node: str | None,
    namespace: str,
    watch: bool,
    interval: float,
    lab: str | None,
    kubeconfig: str | None,
    context: str | None,
    output: str,
) -> None:
    """Show connections with the names of their ends: from whom, to which service, and which pod answers.

    From the connection tracking of every node of a lab. Of a cluster that is no lab it shows the
    connections of the node it runs on.

    \b
    Examples:
      podlane flows
      podlane flows --service web
      podlane flows --pod shop/cart-0 -o json
      podlane flows --node node-2 --watch
    """
    from podlane.lab import snapshot
    from podlane.model.addresses import address
    from podlane.observe.cluster import Cluster
    from podlane.observe.flows import FlowList, Wanted, flow_lines, flows
    from podlane.observe.flows import watch as follow

    def key(text: str | None) -> tuple[str, str] | None:
        if not text:
            return None
        ns, slash, name = text.partition("/")
        return (ns, name) if slash else (namespace, text)

    with snapshot.look(lab, kubeconfig, context, None) as look:
        outside = tuple(map(address, look.record.outside)) if look.record else ()

        wanted = Wanted(key(service), key(pod), node or "")
        wanted.check(Cluster(snapshot.objects(look.client)))

        def told() -> FlowList:
            cluster = Cluster(snapshot.objects(look.client), outside)
            return flows(cluster, snapshot.tracked(look, cluster), wanted)

        if not watch:
            found = told()
            if output == "json":
                click.echo(found.json())
            else:
                for line in flow_lines(found):
                    click.echo(line)
            return
        try:
            for event in follow(told, interval):
                click.echo(event.json() if output == "json" else event.line())
        except KeyboardInterrupt:
            return
