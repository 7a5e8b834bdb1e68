"""Everything of podlane's goes from a node: the opposite of an agent's start, when no agent runs any more.

    conflist        first: from now on the runtime sends no pod here; what was set aside has its name again
    engines         BIRD, wireguard-go and the UDP proxy end, and the routes that BIRD brought go
    programs        of services at the socket, and of IP in IP
    tables          nftables tables of our names
    addresses, routes of protocol 85; links named pl…, pods' among them; bridges that say they are ours
    sysctls         what is still as we wrote it becomes what it was (kernel/sysctl.py)
    files           the plugin's executable and its links, sockets, the state directory

What is somebody else's by then stays, and is told: a bridge with other ports, a sysctl that was changed.
While the runtime has pods of ours it needs the executable to end them, which notes each DEL in the state
directory; so both stay until it has sent them all, and the uninstall is to be run once more.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from podlane.agent import flannel_files, install
from podlane.cni import aside, plugins, wire
from podlane.cni.service import SPOOL
from podlane.engines.bird import driver as bird
from podlane.engines.udp import driver as udp
from podlane.engines.wireguard import driver as wireguard
from podlane.errors import KernelError, PodlaneError
from podlane.kernel import sysctl
from podlane.kernel.bpf import installation
from podlane.kernel.ipip import driver as ipip
from podlane.kernel.nft import command, skeleton
from podlane.kernel.rtnl import PROTOCOL, Rtnl, bridges, routes
from podlane.kernel.rtnl.driver import PREFIX
from podlane.kernel.rtnl.routes import MAIN_TABLE
from podlane.kernel.xtables import forward

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_HELD: Final = "SELECT {} FROM {} WHERE boot_id = ?"


class Place(Struct, frozen=True, kw_only=True):
    """Where an agent had its things; the namesakes of its options. cni_bin_dir, cni_conf_dir: "" for none."""

    state_dir: Path = Path(install.KNOWN_STATE)
    run_dir: Path = Path(install.KNOWN_SOCKET).parent
    cni_bin_dir: str = "/opt/cni/bin"
    cni_conf_dir: str = "/etc/cni/net.d"
    bpf_dir: Path = Path("/sys/fs/bpf/podlane")


class Account(Struct):
    """What became of it, as sentences. attached: pods that the runtime has yet to end. failed: what could not
    be removed; the next time may be better."""

    removed: list[str]
    kept: list[str]
    attached: list[str]
    failed: list[str]

    @property
    def complete(self) -> bool:
        return not self.attached


def uninstall(place: Place, *, force: bool = False) -> Account:
    """Acts on the network namespace it is called in. force: also where there are pods, which then have no
    network. Raises PodlaneError before anything is touched: an agent runs, or there are pods."""
    if _answers(place.run_dir / "agent.sock"):
        raise PodlaneError(f"an agent answers on {place.run_dir}/agent.sock: stop it first")
    attached = [f"{name} ({container})" for container, name in sorted(held(place.state_dir).items())]
    if attached and not force:
        raise PodlaneError(
            f"pods have their network of podlane ({len(attached)}): {_some(attached)}; drain the node "
            "first, or --force: they lose their network"
        )
    account = Account([], [], attached, [])
    engines = (_bird, _wireguard, _udp)
    for step in (_conflist, *engines, _programs, _tables, _network, _settings):
        _try(step, place, account)
    if not account.failed:  # what is noted there may be needed once more
        _try(_files, place, account)
    return account


def _try(step: Callable[[Place, Account], None], place: Place, account: Account) -> None:
    """What goes wrong with one keeps none of the others."""
    try:
        step(place, account)
    except (PodlaneError, OSError) as error:
        account.failed.append(str(error))


def held(state_dir: Path) -> dict[str, str]:
    """Container ids of pods that were attached since the boot and have not been ended -> what is known of the
    pod's name."""
    boot_id = BOOT_ID.read_text().strip()
    leases = dict(_rows(state_dir / "leases.sqlite", "container_id, pod_name", "lease", boot_id))
    for container, _ in _rows(state_dir / "plugins.sqlite", "container_id, kind", "note", boot_id):
        leases.setdefault(container, "")
    for path in (state_dir / SPOOL).glob("*.request"):
        try:
            environment, _ = wire.unpack_request(path.read_bytes())
        except (ValueError, OSError):
            continue
        leases.pop(environment.get("CNI_CONTAINERID", ""), None)
    return {container: name or "no name known" for container, name in leases.items()}


def _rows(path: Path, columns: str, table: str, boot_id: str) -> list[tuple[str, str]]:
    if not path.exists():
        return []
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return list(database.execute(_HELD.format(columns, table), (boot_id,)))
        finally:
            database.close()
    except sqlite3.Error as error:
        raise PodlaneError(f"{path}: {error}; move the file away to go on without its pods") from None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


# --- steps ---


def _conflist(place: Place, account: Account) -> None:
    if place.cni_conf_dir:
        directory = Path(place.cni_conf_dir)
        _unlink(directory / install.CONFLIST, install.is_our_conflist, account)
        account.removed += [f"what kept {path} aside" for path in aside.bring_back(directory)]


def _bird(place: Place, account: Account) -> None:
    directory = place.run_dir / "bird"
    if directory.exists():
        bird.stop(directory)
        with Rtnl() as rt:
            left = rt.routes(protocol=bird.RTPROT_BIRD, table=MAIN_TABLE)
            for route in left:
                rt.do(routes.delete(route))
        account.removed.append(f"BIRD, and {len(left)} routes of its" if left else "BIRD")


def _wireguard(place: Place, account: Account) -> None:
    if (place.run_dir / "wireguard").exists():
        wireguard.stop(place.run_dir / "wireguard")
        account.removed.append("wireguard-go")


def _udp(place: Place, account: Account) -> None:
    if (place.run_dir / "udp").exists():
        udp.stop(place.run_dir / "udp")
        account.removed.append("the UDP proxy")


def _programs(place: Place, account: Account) -> None:
    if installation.remove(place.bpf_dir):
        account.removed.append(f"programs pinned at {place.bpf_dir}")
    ipip.remove()


def _tables(place: Place, account: Account) -> None:
    for each in forward.remove():
        account.removed.append(f"what accepted pods in FORWARD of {each}")
    done = subprocess.run(
        [command.PROGRAM, "list", "tables"], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise KernelError.of(errno.EPERM, "nft list tables", done.stderr.strip())
    found = [line.removeprefix("table ").strip() for line in done.stdout.splitlines()]
    ours = [each for each in found if _is_ours(each.partition(" ")[2])]
    if ours:
        command.load("".join(f"delete table {each}\n" for each in ours))
        account.removed += [f"nftables table {each}" for each in ours]


def _is_ours(table: str) -> bool:
    return table == skeleton.TABLE or table.startswith(f"{skeleton.TABLE}-")


def _network(place: Place, account: Account) -> None:
    with Rtnl() as rt:
        found = rt.links()
        lent = [each for each in rt.addresses() if each.protocol == PROTOCOL]
        for each in lent:
            rt.delete_address(each.link, each.address)
        ours = rt.routes(protocol=PROTOCOL, table=MAIN_TABLE)
        for route in ours:
            rt.do(routes.delete(route))
        links = [link for link in found if link.name.startswith(PREFIX)]
        rt.delete_links(link.name for link in links)
        for bridge in (link for link in found if bridges.ours(link)):
            others = [link.name for link in found if link.master == bridge.index and link not in links]
            if others:
                account.kept.append(f"the bridge {bridge.name} has other ports: {_some(others)}")
            else:
                rt.delete_links([bridge.name])
                account.removed.append(f"the bridge {bridge.name}")
    counted = {"addresses lent to the uplink": len(lent), "routes": len(ours), "links": len(links)}
    account.removed += [f"{number} {what}" for what, number in counted.items() if number]


def _settings(place: Place, account: Account) -> None:
    journal = sysctl.Journal(place.state_dir / sysctl.JOURNAL, BOOT_ID.read_text().strip())
    for name, done in journal.restore():
        (account.removed if done else account.kept).append(name)


def _files(place: Place, account: Account) -> None:
    if (written := flannel_files.remove(place.run_dir)) is not None:
        account.removed.append(str(written))
    if account.attached:
        what = f"{place.cni_bin_dir}/{install.PROGRAM} and {place.state_dir}"
        number = len(account.attached)
        account.kept.append(
            f"{what} stay until the runtime has ended its pods ({number}); then uninstall once more"
        )
    else:
        for path in _executables(place):
            _unlink(path, install.is_our_program, account)
        _tree(place.state_dir, account)
    _tree(place.run_dir, account)


def _executables(place: Place) -> Iterator[Path]:
    """Links before what they lead to: at no time does one lead nowhere."""
    if place.cni_bin_dir:
        for name in (*plugins.load(), install.PROGRAM):
            yield Path(place.cni_bin_dir, name)


def _unlink(path: Path, ours: Callable[[Path], bool], account: Account) -> None:
    if not os.path.lexists(path):
        return
    if ours(path):
        path.unlink()
        account.removed.append(str(path))


def _tree(directory: Path, account: Account) -> None:
    """A directory that is a mount, as in a container, stays and is emptied. Labs' are for `podlane down`."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        if path.name == "labs":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    try:
        directory.rmdir()
    except OSError:
        account.removed.append(f"what was in {directory}")
    else:
        account.removed.append(str(directory))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
