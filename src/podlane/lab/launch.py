"""Making a lab: supervisor, namespaces, fabric, control process, agents. All of it, or nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import yaml
from msgspec.structs import replace

from podlane.errors import LabError, PodlaneError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.lab import cgroups, fabric, listeners, preflight, router, topology
from podlane.lab import record as records
from podlane.lab.down import down
from podlane.lab.paths import LabPaths
from podlane.lab.record import LabRecord, NodeRecord
from podlane.lab.supervisor.client import Supervisor
from podlane.model import stores
from podlane.model.config import NetworkConfig
from podlane.model.flannel import SUBNET_FILE
from podlane.model.stores import StoreKind

CONTROL = "control"
METRICS_PORT = 9585  # of every node, as in deploy/
Progress = Callable[[str], None]


def launch(
    name: str,
    config: NetworkConfig,
    nodes: int,
    *,
    api_port: int = 0,
    log_level: str = "info",
    progress: Progress = lambda _: None,
) -> LabRecord:
    """A running lab whose agents are starting. Raises; then nothing of it is left."""
    plan = topology.plan(config, nodes)
    if config.speaks_bgp or config.bgp.advertise:
        config = router.peered(config, plan)
    if config.backend.flannel_compat and config.flannel.subnet_file == SUBNET_FILE:
        # Nodes share the machine's files: each has its own beside its agent's socket.
        config = replace(config, flannel=replace(config.flannel, subnet_file=Path(SUBNET_FILE).name))
    preflight.require(config)
    store = stores.parse(config.store)
    paths = LabPaths(name)
    if paths.run.exists() or paths.state.exists():
        raise LabError(
            f"lab {name!r} exists already; `podlane down {name}` removes it, or choose another name"
        )
    if store.kind is StoreKind.ETCD:
        from podlane.lab import etcd

        etcd.check_free(name, store)
    listener = listeners.on_loopback(api_port)
    try:
        return _make(paths, config, plan, listener, log_level, progress)
    except BaseException:
        # Ctrl-C too: a half-made lab is of no use to anybody.
        down(name)
        raise
    finally:
        listener.close()


def _make(
    paths: LabPaths,
    config: NetworkConfig,
    plan: topology.Topology,
    listener: socket.socket,
    log_level: str,
    progress: Progress,
) -> LabRecord:
    paths.run.mkdir(parents=True, mode=0o700)
    paths.state.mkdir(parents=True, mode=0o700)
    cgroup = cgroups.make(cgroups.lab_cgroup(paths.name))
    record = LabRecord(
        name=paths.name,
        config=config,
        cgroup=str(cgroup),
        started=time.time(),
        api_port=listener.getsockname()[1],
        outside=plan.outside.plain_addresses,
    )
    records.save(record)

    progress("starting the supervisor")
    process = _start_supervisor(paths, cgroup, log_level)
    record = msgspec.structs.replace(record, supervisor=records.process_id(process.pid))
    records.save(record)
    supervisor = _connect(paths, process)

    progress(f"making {len(plan.nodes)} node{'s' * (len(plan.nodes) > 1)}")
    pids = {
        anchor: supervisor.start_anchor(anchor, hostname=anchor, cgroup=cgroup)
        for anchor in ("fabric", "control", "outside")
    }
    members = []
    for host, rack in plan.nodes:
        members.append(
            NodeRecord(host.name, _start_node(supervisor, paths, cgroup, host), rack, host.plain_addresses)
        )
    record = msgspec.structs.replace(record, pids=pids, nodes=members)
    records.save(record)

    if stores.parse(config.store).kind is StoreKind.LOCAL:
        progress("starting etcd")
        _start_etcd(supervisor, record)
    _start_control(supervisor, record, listener, plan.control.plain_addresses, log_level)
    progress("building the fabric")
    with ExitStack() as open_namespaces:
        namespaces = {}
        for holder, pid in (pids | {node.name: node.pid for node in members}).items():
            namespaces[holder] = netns.open_pid(pid)
            open_namespaces.callback(os.close, namespaces[holder])
        fabric.build(plan, namespaces, config.fabric.mtu)
    if config.speaks_bgp:
        _start_router(supervisor, record)
    _await_file(paths.node_run(members[-1].name) / "kubeconfig", paths.run / "control.log", process)
    for node in members:
        start_agent(supervisor, record, node, log_level)
    return record


def _start_control(
    supervisor: Supervisor,
    record: LabRecord,
    listener: socket.socket,
    addresses: Sequence[str],
    log_level: str,
) -> None:
    with ExitStack() as ours:
        sockets = [listener]
        for each in listeners.in_fabric(record.pids["control"], addresses):
            sockets.append(ours.enter_context(each))
        supervisor.start_service(
            CONTROL,
            entry="podlane.lab.control:run",
            options={"lab": record.name, "log_level": log_level},
            join=None,
            cgroup=Path(record.cgroup),
            log=record.paths.run / "control.log",
            descriptors=[each.fileno() for each in sockets],
        )


def _start_etcd(supervisor: Supervisor, record: LabRecord) -> None:
    from podlane.lab import etcd

    control = netns.open_pid(record.pids["control"])
    try:
        with Rtnl(control) as inside:
            inside.set_up("lo")
    finally:
        os.close(control)
    for member in range(stores.parse(record.config.store).members):
        supervisor.start_service(
            etcd.service(member),
            entry="podlane.lab.etcd:run",
            options={"lab": record.name, "member": member},
            join=record.pids["control"],
            cgroup=Path(record.cgroup),
            log=record.paths.run / f"etcd-{member}.log",
        )


def _start_router(supervisor: Supervisor, record: LabRecord) -> None:
    supervisor.start_service(
        "router",
        entry="podlane.lab.router:run",
        options={"lab": record.name},
        join=record.pids["fabric"],
        cgroup=Path(record.cgroup),
        log=record.paths.run / "router.log",
    )


def start_agent(supervisor: Supervisor, record: LabRecord, node: NodeRecord, log_level: str = "info") -> int:
    """The node's agent, inside its namespaces; the supervisor restarts it when it dies. Returns its pid."""
    paths = record.paths
    return supervisor.start_service(
        f"agent/{node.name}",
        entry="podlane.agent.main:run",
        options={
            "kubeconfig": str(paths.node_run(node.name) / "kubeconfig"),
            "node_name": node.name,
            "config": str(paths.run / "config.yaml"),
            "state_dir": str(paths.node_state(node.name)),
            "host_local_dir": "",  # the machine's own, if it has any
            "cni_socket": str(paths.cni_socket(node.name)),
            "agent_socket": str(paths.agent_socket(node.name)),
            "metrics_address": f":{METRICS_PORT}",
            "cgroup": str(Path(record.cgroup) / node.name),
            "log_level": log_level,
        },
        join=node.pid,
        cgroup=node_cgroup(record, node.name),
        log=paths.node_run(node.name) / "agent.log",
    )


def node_cgroup(record: LabRecord, node: str) -> Path:
    return Path(record.cgroup) / node / "system"


def _start_supervisor(paths: LabPaths, cgroup: Path, log_level: str) -> subprocess.Popen[bytes]:
    (paths.run / "config.yaml").write_text(
        yaml.safe_dump(msgspec.to_builtins(records.find(paths.name).config), sort_keys=False)  # type: ignore[union-attr]
    )
    log = paths.run / "supervisor.log"
    with open(log, "ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "podlane.lab.supervisor",
                "--socket",
                str(paths.supervisor_socket),
                "--cgroup",
                str(cgroup),
                "--log",
                str(log),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(),
            start_new_session=True,
            cwd="/",
        )


def _environment() -> dict[str, str]:
    """What the lab's processes need of the user's environment: a responder's can be read in its pod, and who
    brings a lab up may have credentials in theirs."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "LANG", "TZ") or name.startswith(("PYTHON", "PODLANE_", "LC_"))
    }


def _connect(paths: LabPaths, process: subprocess.Popen[bytes], timeout_s: float = 10.0) -> Supervisor:
    deadline_s = time.monotonic() + timeout_s
    while True:
        if process.poll() is not None:
            raise LabError(f"the supervisor ended at once: {_tail(paths.run / 'supervisor.log')}")
        if paths.supervisor_socket.exists():
            try:
                return Supervisor(paths.supervisor_socket)
            except (PodlaneError, OSError):
                if time.monotonic() > deadline_s:
                    raise
        if time.monotonic() > deadline_s:
            raise LabError(f"the supervisor does not answer: {_tail(paths.run / 'supervisor.log')}")
        time.sleep(0.002)


def _start_node(supervisor: Supervisor, paths: LabPaths, cgroup: Path, host: topology.Host) -> int:
    """A node sees its own run and state directories where a real node has them, and its own resolv.conf."""
    run, state = paths.node_run(host.name), paths.node_state(host.name)
    run.mkdir(parents=True)
    state.mkdir(parents=True)
    resolv = run / "resolv.conf"
    resolv.write_text("# no name server is reachable from a lab node\n")
    node = cgroups.make(cgroup / host.name)
    cgroups.make(node / "pods")
    return supervisor.start_anchor(
        host.name,
        hostname=host.name,
        new_mount=True,
        cgroup=cgroups.make(node / "system"),
        binds=[(str(resolv), os.path.realpath("/etc/resolv.conf"))],
    )


def _await_file(path: Path, log: Path, process: subprocess.Popen[bytes], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise LabError(f"the control process does not come up: {_tail(log)}")
        time.sleep(0.002)


def _tail(path: Path, lines: int = 5) -> str:
    try:
        text = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        text = []
    return " / ".join(text[-lines:]) or f"nothing in {path}"
