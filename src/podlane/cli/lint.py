from __future__ import annotations

import sys

import click


@click.command()
@click.option("--lab", metavar="NAME", help="Which lab (default: lab).")
@click.option("--kubeconfig", metavar="FILE", help="A cluster that is no lab.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option("--config", metavar="FILE", help="NetworkConfig of the cluster that --kubeconfig names.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(
    lab: str | None, kubeconfig: str | None, context: str | None, config: str | None, output: str
) -> None:
    """Name what in NetworkPolicies cannot mean what it seems to.

    Policies that select nothing, rules that never fit, addresses of services, and pods that may send but
    ask for no names. Exits 1 if there is any.

    \b
    Examples:
      podlane lint
      podlane lint -o json
    """
    from podlane.lab import snapshot
    from podlane.observe.cluster import Cluster
    from podlane.observe.lint import lint

    with snapshot.look(lab, kubeconfig, context, config) as look:
        found = lint(Cluster(snapshot.objects(look.client)), look.config)
    if output == "json":
        click.echo(found.json())
    else:
        for each in found.findings:
            click.echo(str(each))
    if found.findings:
        sys.exit(1)
