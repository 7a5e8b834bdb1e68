from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("name", required=False)
@click.option("--lab", metavar="NAME", help="Which lab (default: lab); the same as NAME.")
@click.option("--kubeconfig", metavar="FILE", help="A cluster that is no lab.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
@click.option(
    "--agent-socket",
    metavar="PATH",
    default="/run/podlane/agent.sock",
    show_default=True,
    help="Of a cluster: where the agent of this node answers, if there is one.",
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the answer."
)
def command(
    name: str | None,
    lab: str | None,
    kubeconfig: str | None,
    context: str | None,
    agent_socket: str,
    output: str,
) -> None:
    """Show lab NAME: its nodes, what their agents hold, its pods. Or a cluster: its nodes, agents and their
    versions, the network's conditions, who leads, and load-balancer pools, from what the API says.

    Exits 1 when something is wrong: an agent is not ready, a row is refused, nobody leads.

    \b
    Examples:
      podlane status -o json
      podlane status --kubeconfig ~/.kube/config --context production
    """
    from podlane.errors import UsageError

    if kubeconfig is not None or context is not None:
        if name or lab:
            raise UsageError("give a lab's NAME, or --kubeconfig and --context, not both")
        _cluster(kubeconfig, context or "", Path(agent_socket), output)
        return
    from podlane.lab import record
    from podlane.lab.status import gather

    status = gather(record.load(lab or name or "lab"))
    if output == "json":
        click.echo(json.dumps({"apiVersion": "podlane.dev/v1alpha1", "kind": "LabStatus", **status}))
    else:
        _print(status)
    if not status["ready"]:
        raise SystemExit(1)


def _cluster(kubeconfig: str | None, context: str, socket: Path, output: str) -> None:
    from podlane.lab.cluster_status import gather
    from podlane.lab.rest import Client
    from podlane.observe.cluster_text import lines

    with Client.from_kubeconfig(kubeconfig, context) as client:
        status = gather(client, socket)
    if output == "json":
        click.echo(status.json())
    else:
        for line in lines(status):
            click.echo(line)
    if not status.ready:
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
        for each in agent.get("conflicts", []):
            click.echo(f"           conflict: {each['what']}: {each['remedy']}")
        for line in agent.get("refused", []):
            click.echo(f"           refused: {line}")
    for line in status["problems"]:
        click.echo(f"! {line}")
