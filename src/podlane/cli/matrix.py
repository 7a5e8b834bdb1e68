from __future__ import annotations

import click


@click.command()
@click.option("-n", "--namespace", metavar="NS", help="Only what concerns its pods.")
@click.option(
    "--diff", "files", metavar="FILE", multiple=True, help="What applying FILE would open and close."
)
@click.option("--lab", metavar="NAME", help="Which lab (default: lab).")
@click.option("--kubeconfig", metavar="FILE", help="A cluster that is no lab.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option("--config", metavar="FILE", help="NetworkConfig of the cluster that --kubeconfig names.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(
    namespace: str | None,
    files: tuple[str, ...],
    lab: str | None,
    kubeconfig: str | None,
    context: str | None,
    config: str | None,
    output: str,
) -> None:
    """Show who reaches whom by NetworkPolicy, pod by pod and port by port; nothing is sent or changed.

    \b
    Examples:
      podlane matrix -n shop
      podlane matrix --diff policy.yaml
    """
    from podlane.lab import manifests, snapshot
    from podlane.model.addresses import address
    from podlane.observe import matrix
    from podlane.observe.cluster import Cluster

    planned = [each.object for each in manifests.load(files)] if files else []
    with snapshot.look(lab, kubeconfig, context, config) as look:
        outside = map(address, look.record.outside) if look.record else ()
        cluster = Cluster(snapshot.objects(look.client), outside)
    now = matrix.matrix(cluster, look.config, namespace)
    if not files:
        click.echo(now.json() if output == "json" else "\n".join(matrix.matrix_lines(now)))
        return
    after = matrix.changed(cluster, matrix.planned(planned))
    told = matrix.difference(now, matrix.matrix(after, look.config, namespace))
    click.echo(told.json() if output == "json" else "\n".join(matrix.difference_lines(told)))
