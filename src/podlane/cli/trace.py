from __future__ import annotations

import click


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT][/PROTO]")
@click.option("--lab", metavar="NAME", help="Which lab (default: lab).")
@click.option("-n", "--namespace", default="default", show_default=True, help="Namespace of bare names.")
@click.option("--family", type=click.Choice(["IPv4", "IPv6"]), help="Default: the first that both ends have.")
@click.option("--timeout", default="2s", show_default=True, help="How long to wait for an answer.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(
    source: str,
    destination: str,
    lab: str | None,
    namespace: str,
    family: str | None,
    timeout: str,
    output: str,
) -> None:
    """Send one packet and show it on every link it crosses, and its answer, with times and translations.

    SRC and DST as for `podlane explain`. TCP sends a SYN and completes the handshake; UDP one datagram.
    Exits 0 whatever became of the packet; the last line, or `verdict`, says it.

    \b
    Examples:
      podlane trace pod/client svc/web:80
      podlane trace outside svc/tomcat:http --family IPv6
      podlane trace pod/client pod/dns:53/udp -o json
    """
    from podlane.cli.up import duration_s
    from podlane.lab import snapshot
    from podlane.model.addresses import Family, address
    from podlane.observe.cluster import Cluster
    from podlane.observe.targets import parse_destination, parse_source
    from podlane.observe.text import trace_lines
    from podlane.observe.trace import plan, trace

    begins, ends = parse_source(source, namespace), parse_destination(destination, namespace)
    timeout_s = duration_s(timeout)
    with snapshot.look(lab, None, None, None) as look:
        record = look.record
        assert record is not None
        cluster = Cluster(snapshot.objects(look.client), map(address, record.outside))
    pids = snapshot.places(record, cluster)
    way = plan(cluster, cluster.party(begins), cluster.party(ends), Family(family) if family else None)
    with snapshot.namespaces({p: pid for p, pid in pids.items() if way.enters(p)}) as places:
        told = trace(
            places,
            way.place,
            way.to,
            way.port,
            way.protocol,
            destination=str(ends),
            source_address=way.own,
            timeout_s=timeout_s,
            tunnel_ports=frozenset({look.config.backend.port, look.config.udp.port}),
            cgroup=snapshot.cgroup(record, pids[way.place]) if way.place in pids else None,
        )
    if output == "json":
        click.echo(told.json())
    else:
        for line in trace_lines(told):
            click.echo(line)
