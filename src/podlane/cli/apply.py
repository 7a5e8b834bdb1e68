from __future__ import annotations

import click

from podlane.cli import manifests as common


@click.command()
@common.files_option
@common.access_options
@common.output_option
def command(files: tuple[str, ...], lab: str, kubeconfig: str | None, context: str, output: str) -> None:
    """Create or update objects from manifests, YAML or JSON.

    Old API versions are converted, with a note. What is refused is told with its file, document, object and
    field, and nothing of it is applied; the rest is (exit status 2).

    Example: podlane apply -f examples/web.yaml
    """
    from podlane.lab import apply, manifests

    with common.client_for(lab, kubeconfig, context) as client:
        objects, errors = manifests.read(files, common.note)
        common.refuse(errors)
        common.require_some(objects, errors, files)
        results = apply.apply_objects(client, objects, common.reporter(output))
    common.finish("ApplyResult", results, errors, output)
