from __future__ import annotations

import click

from podlane.cli import manifests as common


@click.command()
@common.files_option
@common.access_options
@common.output_option
@click.option("--wait/--no-wait", default=True, help="Wait until the objects are gone.")
@click.option("--timeout", default="60s", show_default=True, help="How long to wait for that.")
def command(
    files: tuple[str, ...],
    lab: str,
    kubeconfig: str | None,
    context: str,
    output: str,
    wait: bool,
    timeout: str,
) -> None:
    """Delete the objects of manifests. What is not there is no error.

    Example: podlane delete -f examples/web.yaml
    """
    from podlane.cli.up import duration_s
    from podlane.lab import apply, manifests

    timeout_s = duration_s(timeout)
    with common.client_for(lab, kubeconfig, context) as client:
        objects, errors = manifests.read(files)
        common.refuse(errors)
        common.require_some(objects, errors, files)
        report = common.reporter(output)
        results = apply.delete_objects(client, objects, wait=wait, timeout_s=timeout_s, report=report)
    common.finish("DeleteResult", results, errors, output)
