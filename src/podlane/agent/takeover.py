"""What is left to do once taken-over pods' links are podlane's: host ports, and the old plugin's rules of
them.

Host ports first come to podlane's table, then portmap's chains of the container go, and its masquerade: a
rule that stays would send a later holder of the address another one's packets. Connections go on, the
kernel translates them by what it noted at their beginning.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from podlane.cni.host_ports import HostPorts
from podlane.cni.plugins.base import Owner
from podlane.cni.runtime_cache import Cached
from podlane.errors import CniError, KernelError
from podlane.kernel.xtables import command
from podlane.kernel.xtables.owners import HOST_PORT_PREFIX, Attachments
from podlane.kernel.xtables.ruleset import removal

log = logging.getLogger(__name__)


async def finish(over: Sequence[Cached], host_ports: HostPorts) -> None:
    """Goes on after a failure; doing it again does no harm."""
    done: list[tuple[str, str]] = []
    for each in over:
        owner = Owner(each.network, each.container_id, each.ifname)
        addresses = [a.ip for a in each.addresses]
        try:
            await host_ports.add(owner, each.mappings, addresses)
        except (CniError, KernelError) as error:
            log.warning(
                "host ports of pod %s/%s stay portmap's: %s", each.pod_namespace, each.pod_name, error
            )
        else:
            done.append((each.network, each.container_id))
    if done:
        await asyncio.to_thread(forget_rules, done)


def forget_rules(attachments: Collection[tuple[str, str]], netns_fd: int | None = None) -> None:
    """Takes away the reference plugins' rules of these: (network, container id). Blocking."""
    theirs = Attachments(attachments)
    for place in command.PLACES:
        try:
            nat = command.save(place, netns_fd).get("nat")
            if nat is not None:
                # Rules of chains that all containers share lead to one container's own.
                shared = [rule for rule in nat.rules if theirs.rule("nat", rule)]
                gone = removal(nat, theirs.chains)
                lines = [f"-D {rule.chain} {rule.spec}" for rule in shared]
                chains = [*gone.chains, *gone.kept]
                command.restore(place, _text(chains, lines), netns_fd)
        except KernelError as error:
            log.warning("rules of the former plugin stay: %s", error)


def _text(chains: Sequence[str], deletions: Sequence[str]) -> str:
    if not chains and not deletions:
        return ""
    emptied = [f":{chain} - [0:0]" for chain in chains]
    # A runtime that asks bridge for the DEL after all would be refused if its chain of masquerading were
    # gone.
    gone = [f"-X {chain}" for chain in chains if chain.startswith(HOST_PORT_PREFIX)]
    return "\n".join(["*nat", *emptied, *deletions, *gone, "COMMIT", ""])
