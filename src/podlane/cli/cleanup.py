from __future__ import annotations

import click


@click.command()
@click.argument("former", metavar="kube-proxy|flannel|portmap")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
def command(former: str, dry_run: bool, output: str) -> None:
    """Take away what a former proxy or plugin left in this network namespace.

    Only what is its own: iptables chains of both variants and families with the rules that lead to them,
    nftables tables, ipvs, links. Stop it first, or it puts everything back. Connections go on. It may be run
    any number of times.

    Example: podlane cleanup kube-proxy --dry-run
    """
    import json
    import os

    import msgspec

    from podlane.errors import PodlaneError
    from podlane.kernel.xtables import cleanup

    if os.geteuid() != 0:
        raise PodlaneError(f"root is required to clean up; try `sudo podlane cleanup {former}`")
    account = cleanup.clean(former, dry_run=dry_run)
    if output == "json":
        head = {"apiVersion": "podlane.dev/v1alpha1", "kind": "Cleanup", "former": former, "dryRun": dry_run}
        click.echo(json.dumps(head | msgspec.to_builtins(account)))
    else:
        verb = "would be removed" if dry_run else "removed"
        for sentence in account.removed:
            click.echo(f"{verb}: {sentence}")
        for sentence in account.kept:
            click.echo(f"kept: {sentence}")
        if not account.removed and not account.kept and not account.failed:
            click.echo(f"there was nothing of {former}'s")
    if account.failed:
        raise PodlaneError("; ".join(account.failed))
