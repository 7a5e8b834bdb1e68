from __future__ import annotations

import click


@click.command()
@click.option("--state-dir", metavar="DIR", default="/var/lib/podlane", help="As the agent had it.")
@click.option("--run-dir", metavar="DIR", default="/run/podlane", help="Where its sockets were.")
@click.option("--cni-bin-dir", metavar="DIR", default="/opt/cni/bin", help="As the agent had it.")
@click.option("--cni-conf-dir", metavar="DIR", default="/etc/cni/net.d", help="As the agent had it.")
@click.option("--bpf-dir", metavar="DIR", default="/sys/fs/bpf/podlane", help="As the agent had it.")
@click.option(
    "--proc-sys", metavar="DIR", default="/proc/sys", help="Where the machine's /proc/sys can be written."
)
@click.option("--force", is_flag=True, help="Also where there are pods; they lose their network.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
def command(
    state_dir: str,
    run_dir: str,
    cni_bin_dir: str,
    cni_conf_dir: str,
    bpf_dir: str,
    proc_sys: str,
    force: bool,
    output: str,
) -> None:
    """Remove everything of podlane from this node, and leave it as it was. Stop the agent first.

    Tables, links, routes, addresses, programs, engines, files and settings of ours go; what is somebody
    else's stays. It may be run any number of times. Labs are for `podlane down`.

    Example: podlane uninstall
    """
    import json
    import os
    from pathlib import Path

    import msgspec

    from podlane.agent import removal
    from podlane.errors import PodlaneError
    from podlane.kernel import sysctl

    if os.geteuid() != 0:
        raise PodlaneError("root is required to uninstall; try `sudo podlane uninstall`")
    sysctl.locate(proc_sys)
    place = removal.Place(
        state_dir=Path(state_dir),
        run_dir=Path(run_dir),
        cni_bin_dir=cni_bin_dir,
        cni_conf_dir=cni_conf_dir,
        bpf_dir=Path(bpf_dir),
    )
    account = removal.uninstall(place, force=force)
    if output == "json":
        head = {"apiVersion": "podlane.dev/v1alpha1", "kind": "Uninstall"}
        click.echo(json.dumps(head | msgspec.to_builtins(account)))
    else:
        for sentence in account.removed:
            click.echo(f"removed: {sentence}")
        for sentence in account.kept:
            click.echo(f"kept: {sentence}")
        if not account.removed and not account.kept and not account.failed:
            click.echo("there was nothing of podlane's")
    if account.failed:
        raise PodlaneError("not all is removed, run it once more: " + "; ".join(account.failed))
