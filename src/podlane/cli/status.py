from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.argument("name", required=False)
@click.option("--lab", metavar="NAME", help="Which lab (default: lab); the same as NAME.")
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(name: str | None, lab: str | None, output: str) -> None:
    """Show lab NAME: its nodes, what their agents hold, its pods.

    Exits 1 when an agent is not ready or a row is refused. Example: podlane status -o json
    """
    from podlane.lab import record
    from podlane.lab.status import gather

    status = gather(record.load(lab or name or "lab"))
    if output == "json":
        click.echo(json.dumps({"apiVersion": "podlane.dev/v1alpha1", "kind": "LabStatus", **status}))
    else:
        _print(status)
    if not status["ready"]:
        raise SystemExit(1)


def _print(status: dict[str, Any]) -> None:
    outside = ", ".join(status["outside"])
    click.echo(f"lab {status['name']}: API https://127.0.0.1:{status['apiPort']}, outside {outside}")
    click.echo(f"{'NODE':<10} {'RACK':>4}  {'ADDRESSES':<40} {'PODS':>5} {'ROWS':>6}  AGENT")
    for node in status["nodes"]:
        agent = node["agent"]
        state = agent.get("error") or ("ready" if agent.get("ready") else "not ready")
        rows = sum(agent.get("tables", {}).values())
        addresses = ", ".join(node["addresses"])
        click.echo(
            f"{node['name']:<10} {node['rack']:>4}  {addresses:<40} {node['pods']:>5} {rows:>6}  {state}"
        )
        for failure in agent.get("failures", []):
            click.echo(f"           refused: {failure['table']} {failure['key']}: {failure['error']}")
        for line in agent.get("refused", []):
            click.echo(f"           refused: {line}")
    for line in status["problems"]:
        click.echo(f"! {line}")
