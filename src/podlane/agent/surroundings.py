"""What else there is on the node (observe/conflicts.py), looked at now and then, and when others change
rules.

It is told at the Node as the condition podlane.dev/Conflict, on the agent's window, and as a metric. With
others.acceptForward pods are let through iptables' FORWARD from here, each time somebody has set it up anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from podlane.agent.install import CONFLIST
from podlane.agent.node_conditions import MOST_MESSAGE, Condition, NodeConditions
from podlane.agent.options import AgentOptions
from podlane.cni import aside
from podlane.errors import PodlaneError
from podlane.kernel import sysctl
from podlane.kernel.nft import base_chains
from podlane.kernel.nft.base_chains import NamedChain
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.xtables import command, forward
from podlane.kernel.xtables.command import PLACES, Place, Variant
from podlane.kernel.xtables.ruleset import TableText
from podlane.model.addresses import Family
from podlane.model.agents import CONFLICT
from podlane.model.config import LinkMode, NetworkConfig
from podlane.observe.conflicts import Conflict, Dropping, Surroundings, conflicts

log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
SOON_S: Final = 2.0
_OURS: Final = "podlane"
_NETWORKD: Final = Path("/run/systemd/netif")
_NETWORKD_CONF: Final = ("/etc/systemd", "/run/systemd", "/usr/lib/systemd")
_NETWORK_MANAGER: Final = Path("/run/NetworkManager")
_NETWORK_MANAGER_CONF: Final = Path("/etc/NetworkManager")


class Watch:
    """left: links of pods that were not taken over. found: what was so at the last look."""

    def __init__(
        self,
        options: AgentOptions,
        config: NetworkConfig,
        conditions: NodeConditions,
        *,
        uplink: Callable[[], str],
        left: Callable[[], list[str]],
    ) -> None:
        self._options, self._config, self._conditions = options, config, conditions
        self._uplink, self._left = uplink, left
        self._soon = asyncio.Event()
        self.found: list[Conflict] = []

    def changed(self) -> None:
        """Somebody else has changed nftables' rules."""
        self._soon.set()

    async def run(self) -> None:
        """Without end."""
        while True:
            try:
                self.found = await asyncio.to_thread(self._look)
            except (PodlaneError, OSError) as error:
                log.warning("what else is on the node is not known: %s", error)
            else:
                self._conditions.say(condition(self.found))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), EVERY_S)
            await asyncio.sleep(SOON_S)  # who changes one rule changes more
            self._soon.clear()

    def _look(self) -> list[Conflict]:
        before = {conflict.kind: conflict for conflict in self.found}
        now = conflicts(read(self._options, self._config, self._uplink(), self._left()))
        for each in now:
            if each.kind not in before:
                log.warning("%s", each)
        return now


def condition(found: list[Conflict]) -> Condition:
    """One for all of them. The numbers in it change slowly, so that it is not written all the time."""
    if not found:
        return Condition(CONFLICT, "False", "None", "nothing on this node works against podlane")
    kinds = sorted({each.kind for each in found})
    reason = kinds[0] if len(kinds) == 1 else "Several"
    return Condition(CONFLICT, "True", reason, "; ".join(map(str, found))[:MOST_MESSAGE])


def read(options: AgentOptions, config: NetworkConfig, uplink: str, left: list[str]) -> Surroundings:
    """Blocking. With others.acceptForward rules that are missing are added on the way. Raises KernelError."""
    chains = base_chains.read()
    filters, legacy_chains = _filters(chains)
    changed = list(forward.ensure(config.pods.values() if config.others.accept_forward else [], filters))
    for place in changed:
        log.info("the rules of FORWARD of %s that accept pods were set right", place)
    if changed:
        filters, legacy_chains = _filters(chains)
    with Rtnl() as rt:
        links = tuple(sorted(link.name for link in rt.links()))
    bridged = config.link.mode is LinkMode.BRIDGE
    on_host = bool(options.cni_conf_dir)
    return Surroundings(
        families=tuple(family.nft for family in config.ip_families),
        conflists=_conflists(options),
        links=links,
        dropping=tuple(_dropping(chains, filters)),
        chains=frozenset(c.name for c in chains) | legacy_chains,
        tables=frozenset(c.table for c in chains),
        settings=_settings(uplink, links),
        bridged=bridged,
        services=options.services,
        conntrack=_conntrack(),
        networkd=on_host and _networkd(),
        network_manager=on_host and _network_manager(),
        left=tuple(left),
    )


def _filters(chains: list[NamedChain]) -> tuple[dict[Place, TableText], frozenset[str]]:
    """The table filter of each iptables that there is, and all chains of the legacy ones. A program is
    started only where a table is there to be read."""
    found: dict[Place, TableText] = {}
    names: set[str] = set()
    for place in PLACES:
        if place.variant is Variant.NFT:
            there = any(c[:3] == (place.family.nft, "filter", "FORWARD") for c in chains)
        else:
            there = command.may_hold_rules(place)
        tables = command.save(place) if there else {}
        if "filter" in tables:
            found[place] = tables["filter"]
        if place.variant is Variant.LEGACY:
            names.update(chain for table in tables.values() for chain in table.chains)
    return found, frozenset(names)


def _dropping(chains: list[NamedChain], filters: dict[Place, TableText]) -> list[Dropping]:
    found = []
    for place, table in filters.items():
        if forward.drops(table):
            accepted = bool(forward.accepted(table))
            found.append(Dropping(place.family.nft, "filter", "FORWARD", place.program, accepted))
    read_by_program = {(p.family.nft, "filter", "FORWARD") for p in filters if p.variant is Variant.NFT}
    for each in chains:
        ours = each.table == _OURS or each.table.startswith(f"{_OURS}-")
        if each.hook == "forward" and each.drops and not ours and each[:3] not in read_by_program:
            program = ""
            if (each.table, each.name) == ("filter", "FORWARD") and each.family != "inet":
                family = next(f for f in Family if f.nft == each.family)
                program = Place(family, Variant.NFT).program
            found.append(Dropping(each.family, each.table, each.name, program))
    return found


def _conflists(options: AgentOptions) -> tuple[tuple[str, str], ...]:
    if not options.cni_conf_dir:
        return ()
    found = []
    for path in aside.before(Path(options.cni_conf_dir), CONFLIST):
        with suppress(OSError):
            found.append((str(path), aside.first_type(path.read_bytes())))
    return tuple(found)


def _settings(uplink: str, links: tuple[str, ...]) -> dict[str, str]:
    tunnels = [name for name in links if name in ("plvxlan", "plwg", "plipip", "cni0")]
    names = [f"net/ipv4/conf/{each}/rp_filter" for each in ("all", uplink, *tunnels) if each]
    names += ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"]
    names += ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"]
    return {name: value for name in names if (value := sysctl.read(name)) is not None}


def _conntrack() -> tuple[int, int] | None:
    values = [sysctl.read(f"net/netfilter/nf_conntrack_{word}") for word in ("count", "max")]
    try:
        held, most = (int(value or "") for value in values)
    except ValueError:
        return None
    return held, most


def _networkd() -> bool:
    """It runs, and is not told to leave others' routes alone."""
    if not _NETWORKD.is_dir():
        return False
    texts = [
        *(Path(where, "networkd.conf") for where in _NETWORKD_CONF),
        *(path for where in _NETWORKD_CONF for path in sorted(Path(where, "networkd.conf.d").glob("*.conf"))),
    ]
    return not any(_says_no(path) for path in texts)


def _says_no(path: Path) -> bool:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return False
    words = [line.replace(" ", "").lower() for line in lines]
    return any(word in ("manageforeignroutes=no", "manageforeignroutes=false") for word in words)


def _network_manager() -> bool:
    if not _NETWORK_MANAGER.is_dir():
        return False
    paths = [_NETWORK_MANAGER_CONF / "NetworkManager.conf"]
    paths += sorted((_NETWORK_MANAGER_CONF / "conf.d").glob("*.conf"))
    for path in paths:
        with suppress(OSError):
            if "interface-name:pl*" in path.read_text(errors="replace"):
                return False
    return True
