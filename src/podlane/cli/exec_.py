from __future__ import annotations

import click


@click.command("exec", context_settings={"ignore_unknown_options": True})
@click.option("--lab", default="lab", show_default=True, help="Which lab.")
@click.option("-n", "--namespace", default="default", show_default=True, help="The pod's namespace.")
@click.option("-c", "--container", default="", help="Which container; the pod's first by default.")
@click.argument("pod")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def command(lab: str, namespace: str, container: str, pod: str, argv: tuple[str, ...]) -> int:
    """Run a command in a container of POD, with this terminal.

    Example: podlane exec web-0 -- curl -s http://web/hostname
    """
    from podlane.lab import record
    from podlane.lab.supervisor.terminal import run

    found = record.load(lab)
    return run(found.paths.supervisor_socket, namespace, pod.removeprefix("pod/"), container, argv)
