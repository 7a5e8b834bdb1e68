from __future__ import annotations

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--lab", default="lab", show_default=True, help="Which lab.")
@click.argument("node")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def command(lab: str, node: str, argv: tuple[str, ...]) -> None:
    """Run a command inside NODE's namespaces.

    Example: podlane node node-1 -- ip route
    """
    from podlane.lab import launch, record
    from podlane.lab.enter import enter_and_exec

    found = record.load(lab)
    member = found.node(node)
    enter_and_exec(member.pid, argv, launch.node_cgroup(found, member.name))
