from __future__ import annotations

import json
import time

import click


@click.command()
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(output: str) -> None:
    """List the labs of this machine.

    Example: podlane list -o json
    """
    from podlane.errors import LabError
    from podlane.lab import record as records

    rows = []
    for name in records.names():
        try:
            record = records.find(name)
        except LabError:
            record = None
        rows.append(
            {
                "name": name,
                "running": bool(record and record.running),
                "nodes": len(record.nodes) if record else 0,
                "apiPort": record.api_port if record else 0,
                "ageSeconds": int(time.time() - record.started) if record else None,
            }
        )
    if output == "json":
        click.echo(json.dumps({"apiVersion": "podlane.dev/v1alpha1", "kind": "LabList", "items": rows}))
        return
    if not rows:
        click.echo("no labs here; `podlane up` makes one")
        return
    click.echo(f"{'NAME':<20} {'STATE':<9} {'NODES':>5}  API")
    for row in rows:
        state = "running" if row["running"] else "dead"
        click.echo(f"{row['name']:<20} {state:<9} {row['nodes']:>5}  https://127.0.0.1:{row['apiPort']}")
