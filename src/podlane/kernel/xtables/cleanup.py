"""What a former proxy or network plugin left in a node's kernel, found and taken away.

    iptables, ip6tables    both variants: their chains, and the rules of built-in chains that lead there
    nftables               tables of their names
    ipvs                   virtual servers of the addresses on kube-ipvs0, that link, and ipsets KUBE-…
    links                  flannel.1 and its like, a bridge without ports

Connections that are established go on: what translates them is in their conntrack entries, not in these
rules.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from msgspec import Struct

from podlane.errors import KernelError, UsageError
from podlane.kernel.netlink import NETLINK_NETFILTER
from podlane.kernel.netlink_socket import Netlink
from podlane.kernel.nft import codec, ruleset
from podlane.kernel.rtnl import Rtnl
from podlane.kernel.xtables import command, owners
from podlane.kernel.xtables.command import Place
from podlane.kernel.xtables.ruleset import Removal, Rule, removal, restore_text
from podlane.model.addresses import Family


class Former(NamedTuple):
    """Whose things go. chains, rules: as `ruleset.removal` takes them."""

    name: str
    chains: Callable[[str, str], bool]
    rules: Callable[[str, Rule], bool] | None
    nft_tables: tuple[tuple[str, str], ...] = ()
    ipvs: bool = False
    links: tuple[str, ...] = ()
    bridges: tuple[str, ...] = ()


FORMERS: Final = {
    each.name: each
    for each in (
        Former("kube-proxy", owners.kube_proxys, None, owners.KUBE_PROXY_NFT, ipvs=True),
        Former(
            "flannel",
            owners.flannels,
            owners.flannels_rule,
            owners.FLANNEL_NFT,
            links=owners.FLANNEL_LINKS,
            bridges=("cni0", "cbr0"),
        ),
        Former("portmap", owners.host_ports, None, (("ip", "cni_hostport"), ("ip6", "cni_hostport"))),
    )
}


class Account(Struct):
    """What went (or would go), what stays, and what could not be done: sentences each."""

    removed: list[str] = []
    kept: list[str] = []
    failed: list[str] = []


def clean(name: str, *, dry_run: bool = False, netns_fd: int | None = None) -> Account:
    """In a network namespace; None for the caller's. Raises UsageError for a name that is none of FORMERS."""
    former = FORMERS.get(name)
    if former is None:
        raise UsageError(f"{name}: nothing is known of it; known are {', '.join(FORMERS)}")
    account = Account()
    for place in command.PLACES:
        _step(account, lambda place=place: _tables(former, place, account, dry_run, netns_fd))  # type: ignore[misc]
    _step(account, lambda: _nft(former, account, dry_run, netns_fd))
    if former.ipvs:
        _step(account, lambda: _ipvs(account, dry_run, netns_fd))
    _step(account, lambda: _links(former, account, dry_run, netns_fd))
    return account


def _step(account: Account, step: Callable[[], None]) -> None:
    """What fails is told, and the rest is done."""
    try:
        step()
    except KernelError as error:
        account.failed.append(str(error))


def _tables(former: Former, place: Place, account: Account, dry_run: bool, netns_fd: int | None) -> None:
    if not command.present(place):
        if place.variant is command.Variant.LEGACY and command.may_hold_rules(place, netns_fd):
            missing = f"there may be rules of {place}, and the program is not installed: install iptables"
            raise KernelError.of(errno.ENOENT, place.program, missing)
        return
    tables = command.save(place, netns_fd)
    found = [removal(table, former.chains, former.rules) for table in tables.values()]
    if not dry_run:
        command.restore(place, restore_text(found), netns_fd)
    for each in found:
        account.removed += _sentences(place, each)
        account.kept += [f"{place} {each.table}: chain {c}: another's rule leads there" for c in each.kept]


def _sentences(place: Place, each: Removal) -> Iterable[str]:
    for rule in each.rules:
        yield f"{place} {each.table}: rule of {rule.chain}: {rule.spec}"
    for chain in each.chains:
        yield f"{place} {each.table}: chain {chain}"


def _nft(former: Former, account: Account, dry_run: bool, netns_fd: int | None) -> None:
    netlink = Netlink(NETLINK_NETFILTER, netns_fd)
    try:
        for nft_family, table in former.nft_tables:
            family = next(each for each in Family if each.nft == nft_family)
            try:
                netlink.ask(codec.get_table(family, table))
            except KernelError as error:
                if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                    continue
                raise
            if not dry_run:
                begin, end = codec.batch()
                verdicts = netlink.transaction(
                    [ruleset.delete_table(family, table).request], begin=begin, end=end
                )
                for refusal in filter(None, verdicts):
                    raise refusal
            account.removed.append(f"nftables table {nft_family} {table}")
    finally:
        netlink.close()


def _ipvs(account: Account, dry_run: bool, netns_fd: int | None) -> None:
    with Rtnl(netns_fd) as rt:
        link = rt.find_link(owners.KUBE_PROXY_LINK)
        held = {str(each.address.ip) for each in rt.addresses(link.index)} if link else set[str]()
        if link and command.find("ipvsadm"):
            servers = virtual_servers(command.run(["ipvsadm", "-S", "-n"], "", netns_fd), held)
            for server in servers:
                if not dry_run:
                    command.run(["ipvsadm", "-D", *server.split()], "", netns_fd)
                account.removed.append(f"ipvs virtual server {server}")
        elif link:
            account.kept.append("ipvs virtual servers, if there are any: ipvsadm is not installed")
        if link:
            if not dry_run:
                rt.delete_link(link.name, missing_ok=True)
            account.removed.append(f"link {link.name} with {len(held)} addresses")
    if command.find("ipset"):
        names = command.run(["ipset", "list", "-n"], "", netns_fd).split()
        gone = [name for name in names if owners.kube_proxys_set(name)]
        if gone and not dry_run:
            # The sets of sets among them first: they hold the others.
            lists = "".join(f"flush {name}\n" for name in gone) + "".join(f"destroy {n}\n" for n in gone)
            command.run(["ipset", "restore"], lists, netns_fd)
        account.removed += [f"ipset {name}" for name in gone]


def virtual_servers(saved: str, addresses: set[str]) -> list[str]:
    """`-t 10.96.0.1:443` of each server of these addresses, from what `ipvsadm -S -n` prints. Pure."""
    found = []
    for line in saved.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == "-A" and words[1] in ("-t", "-u", "--sctp-service"):
            address = words[2].rpartition(":")[0].strip("[]")
            if address in addresses:
                found.append(f"{words[1]} {words[2]}")
    return found


def _links(former: Former, account: Account, dry_run: bool, netns_fd: int | None) -> None:
    with Rtnl(netns_fd) as rt:
        there = {link.name: link for link in rt.links()}
        ports = {link.master for link in there.values()}
        for name in former.links:
            if name in there:
                if not dry_run:
                    rt.delete_link(name, missing_ok=True)
                account.removed.append(f"link {name}")
        for name in former.bridges:
            link = there.get(name)
            if link is None or link.kind != "bridge":
                continue
            if link.alias.startswith("podlane"):
                account.kept.append(f"the bridge {name} is podlane's by now")
            elif link.index in ports:
                account.kept.append(f"the bridge {name} has ports: pods that run")
            else:
                if not dry_run:
                    rt.delete_link(name, missing_ok=True)
                account.removed.append(f"the bridge {name}")
