"""What `apply`, `delete` and `convert` have in common: options, and how results are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from podlane.errors import ConfigError
    from podlane.lab.apply import Applied
    from podlane.lab.manifests import Manifest
    from podlane.lab.rest import Client

_Command = TypeVar("_Command", bound=Callable[..., Any])

BAD_INPUT = 2


def files_option(function: _Command) -> _Command:
    return click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        required=True,
        metavar="FILE",
        help="File, directory, file:///PATH, http://localhost/PATH or - (standard input). May be repeated.",
    )(function)


def access_options(function: _Command) -> _Command:
    for option in (
        click.option("--lab", default="lab", metavar="NAME", help="The lab to speak to."),
        click.option("--kubeconfig", metavar="FILE", help="Speak to this cluster instead of a lab."),
        click.option("--context", default="", metavar="NAME", help="Context of --kubeconfig."),
    ):
        function = option(function)
    return function


def output_option(function: _Command) -> _Command:
    return click.option(
        "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
    )(function)


def client_for(lab: str, kubeconfig: str | None, context: str) -> Client:
    """Raises LabError when there is no such lab, ConfigError for a kubeconfig that cannot be used."""
    from podlane.errors import UsageError
    from podlane.lab import record, rest

    if kubeconfig is not None:
        return rest.Client.from_kubeconfig(kubeconfig, context)
    if context:
        raise UsageError("--context belongs to --kubeconfig; a lab is named with --lab")
    return rest.Client.from_kubeconfig(record.load(lab).paths.kubeconfig)


def note(text: str) -> None:
    click.echo(f"podlane: note: {text}", err=True)


def refuse(errors: Sequence[ConfigError]) -> None:
    for error in errors:
        click.echo(f"podlane: {error}", err=True)


def require_some(objects: Sequence[Manifest], errors: Sequence[ConfigError], files: Sequence[str]) -> None:
    """Raises UsageError for files without an object: a silent success would hide a wrong name."""
    from podlane.errors import UsageError

    if not objects and not errors:
        raise UsageError(f"{', '.join(files)}: no object here; a manifest has apiVersion, kind and metadata")


def reporter(output: str) -> Callable[[Applied], None]:
    """One line an object, as it is done; errors go to stderr."""

    def report(result: Applied) -> None:
        from podlane.lab.manifests import describe

        if result.error is not None:
            click.echo(f"podlane: {result.error}", err=True)
        elif output == "text":
            click.echo(f"{describe(result.object or result.manifest.object)} {result.action}")

    return report


def finish(kind: str, results: Sequence[Applied], errors: Sequence[ConfigError], output: str) -> None:
    """The JSON document, if asked for, and the status of the whole: 2 when an object was refused."""
    if output == "json":
        rows = [
            {
                "kind": r.manifest.object["kind"],
                "namespace": (r.object or r.manifest.object)["metadata"].get("namespace", ""),
                "name": (r.object or r.manifest.object)["metadata"].get("name", ""),
                "where": r.manifest.where,
                "action": r.action,
                "error": None if r.error is None else str(r.error),
            }
            for r in results
        ]
        document = {
            "apiVersion": "podlane.dev/v1alpha1",
            "kind": kind,
            "objects": rows,
            "errors": [str(e) for e in errors],
        }
        click.echo(json.dumps(document))
    failed = [r.error for r in results if r.error is not None]
    if errors or failed:
        raise SystemExit(BAD_INPUT if errors else max(e.exit_status for e in failed))
