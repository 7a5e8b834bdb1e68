from __future__ import annotations

import click

from podlane.cli import manifests as common


@click.command()
@common.files_option
@click.option(
    "-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", help="Form of the answer."
)
def command(files: tuple[str, ...], output: str) -> None:
    """Rewrite manifests of old API versions in current ones.

    Prints every object, notes of what changed on stderr. Example: podlane convert -f old.yaml > new.yaml
    """
    import json

    from podlane.lab import manifests, yamls

    objects = [m.object for m in manifests.load(files, common.note, validate=False)]
    if output == "json":
        click.echo(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2))
    elif objects:
        click.echo(yamls.dump(objects), nl=False)
