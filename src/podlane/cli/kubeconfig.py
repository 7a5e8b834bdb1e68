from __future__ import annotations

import click


@click.command()
@click.argument("name", default="lab")
def command(name: str) -> None:
    """Print the path of a kubeconfig for lab NAME.

    Example: kubectl --kubeconfig $(podlane kubeconfig) get pods -A
    """
    from podlane.lab import record

    click.echo(record.load(name).paths.kubeconfig)
