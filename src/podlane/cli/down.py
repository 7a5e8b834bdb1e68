from __future__ import annotations

import click

from podlane.errors import LabError


@click.command()
@click.argument("name", required=False)
@click.option("--all", "every", is_flag=True, help="Every lab of this machine.")
def command(name: str | None, every: bool) -> None:
    """Take lab NAME (default: lab) down; nothing of it is left, also after a crash.

    Example: podlane down lab
    """
    import os

    from podlane.lab import record
    from podlane.lab.down import down

    if every and name:
        raise click.UsageError("name one lab, or --all")
    if os.geteuid() != 0:
        raise LabError("root is required to take a lab down; try `sudo podlane down`")
    wanted = record.names() if every else [name or "lab"]
    for lab in wanted:
        if down(lab):
            click.echo(f"lab {lab} is gone", err=True)
        elif not every:
            click.echo(f"there is no lab {lab}", err=True)
