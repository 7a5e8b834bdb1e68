from __future__ import annotations

import json

import click

from podlane import __version__


@click.command()
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(output: str) -> None:
    """Print the version.

    Example: podlane version -o json
    """
    if output == "json":
        click.echo(
            json.dumps({"apiVersion": "podlane.dev/v1alpha1", "kind": "Version", "version": __version__})
        )
    else:
        click.echo(f"podlane {__version__}")
