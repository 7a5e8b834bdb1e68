from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--lab", default="lab", show_default=True, help="Which lab.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def command(lab: str, argv: tuple[str, ...]) -> None:
    """Run a command on the host that is no node: traffic from beyond the cluster.

    Example: podlane outside -- curl -s http://172.30.1.11:30080/hostname
    """
    from pathlib import Path

    from podlane.lab import record
    from podlane.lab.enter import enter_and_exec

    found = record.load(lab)
    enter_and_exec(found.pids["outside"], argv, Path(found.cgroup) / "outside")
