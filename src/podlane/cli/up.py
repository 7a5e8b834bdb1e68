from __future__ import annotations

import re
import sys
import time

import click

from podlane.errors import UsageError


def duration_s(text: str) -> float:
    """Seconds of "60s", "2m", "1m30s", "500ms" or a plain number. Raises UsageError."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", text):
        raise UsageError(f"{text!r} is not a duration; write for example 60s or 2m")
    return sum(float(n) * units[u] for n, _, u in re.findall(r"(\d+(\.\d+)?)(h|ms|m|s)", text))


@click.command()
@click.argument("name", default="lab")
@click.option("--nodes", type=int, default=3, show_default=True, help="How many nodes.")
@click.option(
    "-f", "files", multiple=True, metavar="FILE", help="Manifests: file, directory, file:// URL or -."
)
@click.option("--config", "config_file", metavar="FILE", help="A NetworkConfig.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a key of NetworkConfig."
)
@click.option(
    "--store", metavar="STORE", help="Where the API keeps objects: sqlite, etcd://local, etcd://HOST..."
)
@click.option("--timeout", default="60s", show_default=True, help="How long to wait for readiness.")
@click.option(
    "--api-port", type=click.IntRange(0, 65535), default=0, help="Port of the API on 127.0.0.1; 0: any."
)
@click.pass_context
def command(
    context: click.Context,
    name: str,
    nodes: int,
    files: tuple[str, ...],
    config_file: str | None,
    settings: tuple[str, ...],
    store: str | None,
    timeout: str,
    api_port: int,
) -> None:
    """Bring lab NAME (default: lab) up and wait until everything of the manifests is ready.

    Example: podlane up --nodes 3 -f examples/ --set fabric.racks=2
    """
    from podlane.lab.up import load_config, up

    started_s = time.monotonic()
    wait_s = duration_s(timeout)
    config = load_config(config_file, [*settings, *([f"store={store}"] if store else [])])

    def progress(line: str) -> None:
        click.echo(f"{time.monotonic() - started_s:6.2f} s  {line}", err=True)

    level = (context.parent.params if context.parent else {}).get("log_level", "warning")
    up(
        name,
        config,
        nodes=nodes,
        files=files,
        timeout_s=wait_s,
        api_port=api_port,
        log_level="info" if level == "warning" else level,
        progress=progress,
    )
    progress(f"lab {name} is ready: {nodes} node{'s' * (nodes > 1)}")
    if sys.stderr.isatty():
        click.echo(
            f"talk to it: kubectl --kubeconfig $(podlane kubeconfig {name}) get pods -A -o wide", err=True
        )
