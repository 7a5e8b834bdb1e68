"""What a bug report has of one node: its agent's own words, the kernel's state, engines, logs, leases."""

from __future__ import annotations

import json
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import to_builtins

from podlane import __version__
from podlane.compile.udp import DEVICE as UDP_DEVICE
from podlane.compile.wireguard import DEVICE
from podlane.engines.bird.process import BirdProcess
from podlane.engines.udp.control import Request
from podlane.engines.udp.process import UdpProcess
from podlane.engines.wireguard import uapi
from podlane.engines.wireguard.process import WireguardProcess
from podlane.errors import LabError, UnsupportedError
from podlane.kernel import netns
from podlane.kernel.conntrack import statistics
from podlane.lab import agents, snapshot
from podlane.lab.bugreport.archive import Archive, Collector
from podlane.lab.bugreport.secrets import document

TIMEOUT_S: Final = 20.0
LOG_BYTES: Final = 4 << 20
MOST_CONNECTIONS: Final = 50_000

_PAGES: Final = ("status", "tables", "metrics", "metrics/services", "metrics/policies", "readyz")
_COMMANDS: Final = {
    "links.txt": ("ip", "-d", "-s", "link", "show"),
    "addresses.txt": ("ip", "address", "show"),
    "rules.txt": ("ip", "rule", "show"),
    "rules6.txt": ("ip", "-6", "rule", "show"),
    "routes.txt": ("ip", "route", "show", "table", "all"),
    "routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "neighbours.txt": ("ip", "neighbour", "show"),
    "fdb.txt": ("bridge", "fdb", "show"),
    "bridge-links.txt": ("bridge", "-d", "link", "show"),
    "qdiscs.txt": ("tc", "-s", "qdisc", "show"),
    "sockets.txt": ("ss", "-s"),
    "listening.txt": ("ss", "-lntu"),
    "nft-tables.txt": ("nft", "list", "tables"),
    "nft-chains.txt": ("nft", "list", "chains"),
    "iptables.txt": ("iptables-save", "-c"),
    "ip6tables.txt": ("ip6tables-save", "-c"),
}
_BIRD: Final = {
    "status.txt": "show status",
    "protocols.txt": "show protocols all",
    "route-count.txt": "show route count",
    "routes.txt": "show route",
    "bfd.txt": "show bfd sessions",
}
_SYSCTLS: Final = (
    r"^net\.ipv4\.(ip_forward|conf\.[^.]+\.(forwarding|rp_filter|route_localnet|proxy_arp|arp_\w+|src_valid_mark))"
    r"|^net\.ipv6\.conf\.[^.]+\.(forwarding|accept_ra|disable_ipv6|proxy_ndp|addr_gen_mode)"
    r"|^net\.ipv[46]\.neigh\.default\.|^net\.netfilter\.nf_conntrack|^net\.bridge\.|^net\.core\.(\w+_max|default_qdisc)"
)
_OURS: Final = re.compile(r"^table (\S+) (podlane\S*)$", re.MULTILINE)


class Site(NamedTuple):
    """A node and where its things are. folder: in the archive. netns_fd: None for this process's namespace.

    logs: files, by their names in the archive. unit: of systemd, "" for none.
    """

    folder: str
    netns_fd: int | None
    agent_socket: Path
    state_dir: Path
    config: Path
    logs: dict[str, Path]
    unit: str = ""


def collect(archive: Archive, site: Site, *, connections: bool = False) -> None:
    for name, collector in collectors(site, connections=connections):
        archive.add(f"{site.folder}/{name}", collector)


def collectors(site: Site, *, connections: bool) -> Iterator[tuple[str, Collector]]:
    for page in _PAGES:
        yield f"agent/{page.replace('/', '-')}.{_suffix(page)}", partial(_page, site, page)
    yield "agent/sockets.json", lambda: _sockets(site)
    yield "config.yaml.json", lambda: document(site.config)
    yield "leases.json", lambda: _leases(site.state_dir / "leases.sqlite")
    yield "files.txt", lambda: "\n".join(_files(site.state_dir, site.agent_socket.parent)) + "\n"
    for name, path in site.logs.items():
        yield f"logs/{name}", partial(tail, path)
    if site.unit:
        journal = ("journalctl", "--no-pager", "-o", "short-iso", "-n", "20000", "-u", site.unit)
        yield "logs/journal.log", lambda: _run(site, *journal)
    for name, command in _COMMANDS.items():
        yield f"kernel/{name}", partial(_run, site, *command)
    yield "kernel/nft-ours.txt", lambda: _rulesets(site)
    yield "kernel/sysctls.txt", lambda: _run(site, "sysctl", "-a", "--pattern", _SYSCTLS)
    yield "kernel/conntrack.json", lambda: statistics.read(site.netns_fd)._asdict()
    if connections:
        yield "kernel/connections.json", lambda: _connections(site)
    bird = BirdProcess(site.agent_socket.parent / "bird")
    if bird.pid:
        yield "bird/bird.conf", bird.configured
        yield "bird/bird.log", lambda: tail(bird.log)
        for name, question in _BIRD.items():
            yield f"bird/{name}", partial(bird.ask, question)
    wireguard = WireguardProcess(site.agent_socket.parent / "wireguard", DEVICE)
    if wireguard.pid:
        yield "wireguard/device.txt", lambda: _without_keys(wireguard.ask(uapi.GET))
        yield "wireguard/wireguard.log", lambda: tail(wireguard.log)
    proxy = UdpProcess(site.agent_socket.parent / "udp", UDP_DEVICE)
    if proxy.pid:
        yield "udp/proxy.json", lambda: to_builtins(proxy.ask(Request()))
        yield "udp/udp.log", lambda: tail(proxy.log)


def machine() -> dict[str, Any]:
    """What it is that runs all this. Which tools there are, by what they say of their versions."""
    tools = {"nft": "-v", "ip": "-V", "bird": "--version", "conntrack": "-V", "kubectl": "version --client"}
    release = Path("/etc/os-release")
    return {
        "podlane": __version__,
        "python": platform.python_version(),
        "kernel": " ".join(os.uname()),
        "system": release.read_text().splitlines() if release.exists() else [],
        "processors": os.cpu_count(),
        "memory": Path("/proc/meminfo").read_text().splitlines()[:3],
        "load": Path("/proc/loadavg").read_text().strip(),
        "tools": {name: _version(name, *flags.split()) for name, flags in tools.items()},
    }


def _version(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, timeout=5
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"none: {error}"
    return (done.stdout or done.stderr).strip()


def _suffix(page: str) -> str:
    return "txt" if page.startswith("metrics") or page == "readyz" else "json"


def _page(site: Site, page: str) -> Any:
    body = agents.fetch(site.agent_socket, f"/{page}", TIMEOUT_S)
    return json.loads(body) if _suffix(page) == "json" else body


def _sockets(site: Site) -> Any:
    """With services.mode socket alone there are any."""
    try:
        return _page(site, "sockets")
    except LabError as error:
        if "answers 404" in str(error):
            return None
        raise


def _run(site: Site, *command: str) -> str:
    """What a program prints in the node's network namespace: a child is born into its parent thread's."""
    try:
        with netns.entered(site.netns_fd) if site.netns_fd is not None else nullcontext():
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
    except FileNotFoundError:
        raise UnsupportedError(f"there is no {command[0]} on this machine") from None
    with child:
        try:
            said, _ = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
    text = said.decode("utf-8", "replace")
    return text if not child.returncode else f"{text}\n[{' '.join(command)}: status {child.returncode}]\n"


def _rulesets(site: Site) -> str:
    """Of podlane's own tables, with counters."""
    tables = _OURS.findall(_run(site, "nft", "list", "tables"))
    return "\n".join(_run(site, "nft", "list", "table", family, name) for family, name in tables)


def _connections(site: Site) -> list[str]:
    entries = snapshot.read_flows(site.netns_fd)
    told = [f"{len(entries)} connections"] if len(entries) > MOST_CONNECTIONS else []
    return told + [str(entry) for entry in entries[:MOST_CONNECTIONS]]


def _leases(path: Path) -> list[dict[str, Any]] | None:
    """Read only, beside the agent that has it open."""
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as database:
        database.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in database.execute("SELECT * FROM lease ORDER BY container_id")]
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from None


def _files(*directories: Path) -> Iterator[str]:
    """Names, modes and sizes; what they hold is not read."""
    for top in directories:
        for path in sorted(top.rglob("*"))[:5000]:
            try:
                found = path.lstat()
            except OSError:
                continue
            yield f"{found.st_mode:o} {found.st_size:>10} {path}"


def tail(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(max(0, size - LOG_BYTES))
        text = file.read().decode("utf-8", "replace")
    if size <= LOG_BYTES:
        return text
    # Half a line might be half a secret, which nobody knows again.
    return f"[… {size - LOG_BYTES} bytes and the rest of a line before …]\n{text.partition(chr(10))[2]}"


def _without_keys(answer: str) -> str:
    private = ("private_key=", "preshared_key=")
    return "\n".join(line for line in answer.splitlines() if not line.startswith(private)) + "\n"
