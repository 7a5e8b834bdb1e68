from __future__ import annotations

import sys

import click


@click.command()
@click.argument("name", required=False)
@click.option("--lab", metavar="NAME", help="Which lab (default: lab); the same as NAME.")
@click.option("--timeout", default="2s", show_default=True, help="How long to wait for one answer.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(name: str | None, lab: str | None, timeout: str, output: str) -> None:
    """Try every way of communicating in lab NAME, with real packets; exits 1 if any fails.

    Containers of one pod over localhost, pods on one node and across nodes, pods and nodes both ways,
    services from pods, nodes and outside, that pods see each other's own addresses, and that the largest
    packets of pods get from node to node whole.

    \b
    Examples:
      podlane check
      podlane check demo -o json
    """
    from podlane.cli.up import duration_s
    from podlane.errors import UsageError
    from podlane.lab import snapshot
    from podlane.model.addresses import address
    from podlane.observe.check import Place, check
    from podlane.observe.check import report as summed
    from podlane.observe.check_plan import plan
    from podlane.observe.check_policy import expectations
    from podlane.observe.cluster import Cluster
    from podlane.observe.ground import survey
    from podlane.observe.path_mtu import measure, paths
    from podlane.observe.text import report_lines

    if name and lab and name != lab:
        raise UsageError(f"two labs are named, {name!r} and {lab!r}; name one")
    timeout_s = duration_s(timeout)
    with snapshot.look(name or lab, None, None, None) as look:
        record = look.record
        assert record is not None
        cluster = Cluster(snapshot.objects(look.client), map(address, record.outside))
        config = look.config
    ground = survey(cluster, snapshot.running(record))
    places = {
        place: Place(f"/proc/{pid}/ns/net", snapshot.cgroup(record, pid))
        for place, pid in snapshot.places(record, cluster).items()
    }
    steps = plan(ground)
    expected = expectations(steps, cluster, config)
    tried = check(steps, ground, places, timeout_s=timeout_s, expected=expected).checks
    report = summed([*tried, *measure(paths(cluster.nodes.values(), config), places)])
    if output == "json":
        click.echo(report.json())
    else:
        hint = "podlane explain" + (f" --lab {record.name}" if record.name != "lab" else "")
        for line in report_lines(report, hint):
            click.echo(line)
    if report.failed:
        sys.exit(1)
