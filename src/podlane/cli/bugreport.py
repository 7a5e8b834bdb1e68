from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("name", required=False)
@click.option("--lab", metavar="NAME", help="Which lab (default: lab); the same as NAME.")
@click.option("--node", is_flag=True, help="No lab: the node (or the agent's pod) this runs on.")
@click.option("--kubeconfig", metavar="FILE", help="No lab: the node this runs on, and the cluster it is of.")
@click.option("--context", metavar="NAME", default="", help="Context of the kubeconfig.")
@click.option(
    "--config", metavar="FILE", default="/etc/podlane/config.yaml", help="The node's NetworkConfig."
)
@click.option("--state-dir", metavar="DIR", default="/var/lib/podlane", help="The node's leases.")
@click.option("--agent-socket", metavar="PATH", default="/run/podlane/agent.sock", help="The node's agent.")
@click.option("-o", "--output", metavar="FILE", help="The archive (default: a name with the time, here).")
@click.option(
    "--connections", is_flag=True, help="With the connections that are tracked: who speaks to whom."
)
@click.option(
    "--max-size",
    metavar="MIB",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    help="Of all files together, before they are compressed.",
)
def command(
    name: str | None,
    lab: str | None,
    node: bool,
    kubeconfig: str | None,
    context: str,
    config: str,
    state_dir: str,
    agent_socket: str,
    output: str | None,
    connections: bool,
    max_size: int,
) -> None:
    """Collect what somebody who is to help needs to see, in one archive: of lab NAME, or of this node.

    Agents' states and tables, rulesets, routes, settings, logs, engines, narrow API objects. Secrets are
    taken out: keys, tokens, passwords, credentials; Secrets, ConfigMaps and environments are not read. Names
    and addresses of pods and services stay: look into it before you send it. What cannot be collected is
    noted in its MANIFEST.json.

    \b
    Examples:
      podlane bugreport
      podlane bugreport shop -o shop.tar.gz
      podlane bugreport --kubeconfig /etc/podlane/kubeconfig
    """
    from podlane.errors import UsageError
    from podlane.lab import record
    from podlane.lab.bugreport.run import Here, Wish, of_lab, of_node, reachable

    here = node or kubeconfig is not None or bool(context)
    if here and (name or lab):
        raise UsageError("give a lab's NAME, or --node, --kubeconfig and --context, not both")
    tty = sys.stderr.isatty()

    def progress(what: str) -> None:
        if tty:
            click.echo(f"\r\x1b[K{what}", nl=False, err=True)

    wish = Wish(Path(output) if output else None, connections, max_size << 20, progress)
    if here:
        place = Path(kubeconfig) if kubeconfig else None
        asked = kubeconfig is not None or bool(context) or reachable()
        made = of_node(Here(Path(agent_socket), Path(state_dir), Path(config), place, context, asked), wish)
    else:
        made = of_lab(record.load(lab or name or "lab"), wish)
    if tty:
        click.echo("\r\x1b[K", nl=False, err=True)
    size = made.path.stat().st_size
    click.echo(f"{made.path}: {made.files} files, {size / 1024:.0f} KiB")
    if made.failed:
        click.echo(f"{len(made.failed)} could not be collected; MANIFEST.json in it says why", err=True)
