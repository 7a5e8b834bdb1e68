"""The supervisor as the lab starts it: a process of its own, spoken to over its socket."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from podlane.errors import LabError
from podlane.lab import cgroups
from podlane.lab.down import unmount_below
from podlane.lab.runtime import capabilities
from podlane.lab.supervisor import terminal
from podlane.lab.supervisor.client import ContainerSpec, Supervisor, SupervisorRefusal
from podlane.lab.supervisor.protocol import Mount

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.005)


class Site:
    """A supervisor, a sandbox and what containers need, below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "a_service.py").write_text("import time\ndef run(options):\n    time.sleep(options['s'])\n")
        self.cgroup = cgroups.make(cgroups.mount_point() / "podlane" / f"test-{os.getpid()}")
        self.socket = root / "supervisor.sock"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "podlane.lab.supervisor", "--socket", str(self.socket)),
                *("--cgroup", str(self.cgroup), "--log", str(root / "supervisor.log")),
            ],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])},
        )
        until(self.socket.exists)
        self.supervisor = Supervisor(self.socket)
        self._sandbox = 0
        self._count = 0

    @property
    def sandbox(self) -> int:
        if not self._sandbox:
            self._sandbox = self.supervisor.start_sandbox(
                "pod", hostname="web-0", netns_pid=None, cgroup=self.cgroup
            )
        return self._sandbox

    def spec(self, *argv: str, **fields: object) -> ContainerSpec:
        self._count += 1
        given: dict[str, object] = {
            "name": f"c{self._count}",
            "labels": {"container": f"c{self._count}"},
            "sandbox_pid": self.sandbox,
            "cgroup": str(self.cgroup),
            "log": str(self.root / f"c{self._count}.log"),
            "argv": list(argv),
            "otherwise": "fail",
            "env": {"PATH": PATH},
            "hostname": "web-0",
            "capabilities": list(capabilities.DEFAULT),
            "hidden": [str(self.root)],
        }
        return ContainerSpec(**{**given, **fields})  # type: ignore[arg-type]

    def run(self, *argv: str, **fields: object) -> tuple[int, str]:
        """(exit status, what it wrote) of a container."""
        spec = self.spec(*argv, **fields)
        pid = self.supervisor.start_container(spec).pid
        status = self.supervisor.wait(pid)
        self.supervisor.forget(pid)
        lines = Path(spec.log).read_text().splitlines()
        return status, "\n".join(line.partition(" ")[2] for line in lines)

    def shell(self, script: str, **fields: object) -> str:
        status, output = self.run("sh", "-c", script, **fields)
        assert status == 0, output
        return output

    def end(self) -> None:
        self.supervisor.shutdown()
        self.supervisor.close()
        assert self.process.wait(10) == 0
        cgroups.kill(self.cgroup)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end()
    mounts = Path("/proc/self/mounts").read_text()
    unmount_below(tmp_path)
    assert str(tmp_path) not in mounts


def test_anchor_holds_namespaces_of_its_own(site: Site, tmp_path: Path) -> None:
    source = tmp_path / "resolv.conf"
    source.write_text("bound\n")
    target = tmp_path / "target"
    target.touch()
    pid = site.supervisor.start_anchor(
        "node-1", hostname="node-1", new_mount=True, cgroup=site.cgroup, binds=[(str(source), str(target))]
    )
    for kind in ("net", "uts", "mnt"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert Path(f"/proc/{pid}/root{target}").read_text() == "bound\n"
    assert target.read_text() == ""
    assert pid in cgroups.processes(site.cgroup)
    assert [(p.name, p.kind, p.exit_status) for p in site.supervisor.list()] == [("node-1", "anchor", None)]


def test_container_cannot_change_the_host(site: Site) -> None:
    marker = f"/etc/podlane-test-{os.getpid()}"
    assert site.shell(f"echo hello > {marker}; cat {marker}; rm /etc/passwd; ls /etc/passwd || true") == (
        "hello\nls: cannot access '/etc/passwd': No such file or directory"
    )
    assert not os.path.exists(marker)
    assert os.path.exists("/etc/passwd")
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"):
        assert "Read-only" in site.shell(f"(echo x > {path}) 2>&1 || true")
    assert "Read-only" in site.shell("(echo x > /sys/x) 2>&1 || true")


def test_container_does_not_see_the_host(site: Site, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    assert site.shell("ls -A /root /run/podlane /tmp 2>/dev/null; hostname") == "/root:\n\n/tmp:\nweb-0"
    assert site.shell("test ! -e /.podlane-host; ls -d /proc/[0-9]*").split()[0] == "/proc/1"
    status, _ = site.run("test", "-e", str(tmp_path / "token"))
    assert status == 1
    assert "overlay / overlay" in site.shell("cat /proc/mounts")
    namespaces = json.loads(
        site.shell(
            "python3 -c 'import os, json; "
            'print(json.dumps({k: os.readlink("/proc/self/ns/" + k) for k in os.listdir("/proc/self/ns")}))\''
        )
    )
    for kind in ("net", "uts", "mnt", "pid", "ipc"):
        assert namespaces[kind] != os.readlink(f"/proc/self/ns/{kind}")
    for kind in ("net", "ipc"):
        assert namespaces[kind] == os.readlink(f"/proc/{site.sandbox}/ns/{kind}")


def test_rights_are_reduced(site: Site) -> None:
    status = site.shell("cat /proc/self/status")
    caps = {line.split()[0]: int(line.split()[1], 16) for line in status.splitlines() if "Cap" in line}
    allowed = capabilities.mask(capabilities.DEFAULT)
    assert caps["CapBnd:"] == caps["CapEff:"] == caps["CapPrm:"] == allowed
    assert caps["CapInh:"] == 0
    assert "Operation not permitted" in site.shell("mknod /tmp/disk b 254 0 2>&1 || true")
    assert site.shell("id -u; id -g; grep NoNewPrivs /proc/self/status", uid=1000, gid=1001) == (
        "1000\n1001\nNoNewPrivs:\t0"
    )
    assert "NoNewPrivs:\t1" in site.shell("cat /proc/self/status", no_new_privs=True)
    assert "Read-only" in site.shell("touch /etc/x 2>&1 || true", read_only_root=True)


def test_a_privileged_container_rules_its_own_network_and_no_more(site: Site) -> None:
    for privileged in (True, False):
        fields = {"privileged": privileged, "capabilities": capabilities.left(["ALL"], ())}
        assert site.shell("ip addr add 192.0.2.1/32 dev lo && echo added", **fields) == "added"
        site.shell("ip addr del 192.0.2.1/32 dev lo", **fields)
        for refused in ("mknod /disk b 254 0", "mount -t tmpfs x /mnt", f"umount {site.root}"):
            assert site.run(*refused.split(), **fields)[0] != 0
        assert "Read-only" in site.shell("(echo x > /proc/sys/kernel/core_pattern) 2>&1 || true", **fields)
    site.shell("echo 42 > /proc/sys/net/ipv4/ip_default_ttl", privileged=True)


def test_a_sandbox_gets_sysctls_of_its_own_namespaces_only(site: Site) -> None:
    def sandbox(**sysctls: str) -> int:
        return site.supervisor.start_sandbox(
            "pod", hostname="a", netns_pid=None, cgroup=site.cgroup, sysctls=sysctls
        )

    pid = sandbox(**{"net.ipv4.ip_local_port_range": "20000 30000", "kernel.shmmni": "4095"})
    assert site.shell("cat /proc/sys/net/ipv4/ip_local_port_range", sandbox_pid=pid) == "20000\t30000"
    before = Path("/proc/sys/kernel/panic_on_oops").read_text()
    for name in ("kernel.panic_on_oops", "net/../kernel/panic_on_oops", "vm.swappiness"):
        with pytest.raises(SupervisorRefusal, match=r"not the pod's own"):
            sandbox(**{name: "1"})
    assert Path("/proc/sys/kernel/panic_on_oops").read_text() == before


def test_volumes(site: Site, tmp_path: Path) -> None:
    data, config = tmp_path / "data", tmp_path / "config"
    data.mkdir()
    config.write_text("value")
    (data / "link").symlink_to("/etc")
    mounts = [
        Mount(source=str(data), target="/data"),
        Mount(source=str(data), target="/ro", read_only=True),
        Mount(source=str(config), target="/var/run/deep/er/config"),
    ]
    script = "echo x > /data/file; cat /ro/file /run/deep/er/config; touch /ro/y 2>&1 || true"
    assert site.shell(script, mounts=mounts) == "x\nvaluetouch: cannot touch '/ro/y': Read-only file system"
    assert (data / "file").read_text() == "x\n"
    escape = site.spec("true", mounts=[Mount(source=str(data), target="/x", sub_path="link")])
    with pytest.raises(SupervisorRefusal, match="link"):
        site.supervisor.start_container(escape)


def test_what_is_written_to_a_volume_of_the_host_is_discarded(site: Site, tmp_path: Path) -> None:
    of_host = tmp_path.with_name(f"{tmp_path.name}-host")
    (of_host / "sub").mkdir(parents=True)
    (of_host / "sub" / "file").write_text("there\n")
    mounts = [
        Mount(source=str(of_host), target="/a", of_host=True),
        Mount(source=str(of_host), target="/b", of_host=True, sub_path="made/here"),
        Mount(source=str(of_host), target="/c", of_host=True, read_only=True),
        Mount(source=str(of_host / "sub" / "file"), target="/d", of_host=True),
    ]
    script = "cat /a/sub/file; echo x > /a/new; echo x > /b/new; echo x > /d; rm -r /a/sub; cat /d; ls /a /c"
    assert site.shell(script, mounts=mounts) == "there\nx\n/a:\nnew\n\n/c:\nsub"
    assert "Read-only" in site.shell("touch /c/new 2>&1 || true", mounts=mounts)
    assert [str(p.relative_to(of_host)) for p in sorted(of_host.rglob("*"))] == ["sub", "sub/file"]
    assert (of_host / "sub" / "file").read_text() == "there\n"


def test_exit_status_is_kept_until_forgotten(site: Site) -> None:
    pid = site.supervisor.start_container(site.spec("sh", "-c", "exit 3")).pid
    assert site.supervisor.wait(pid) == 3
    with Supervisor(site.socket) as another:
        assert another.wait(pid) == 3
        assert [p.exit_status for p in another.list() if p.pid == pid] == [3]
        another.forget(pid)
        with pytest.raises(SupervisorRefusal, match="no process"):
            another.wait(pid)
    pid = site.supervisor.start_container(site.spec("sleep", "60")).pid
    with pytest.raises(SupervisorRefusal, match="still runs"):
        site.supervisor.forget(pid)
    site.supervisor.signal(pid, signal.SIGKILL)
    assert site.supervisor.wait(pid) == 137


def test_absent_program(site: Site) -> None:
    spec = site.spec("no-such-program")
    with pytest.raises(SupervisorRefusal, match="no-such-program"):
        site.supervisor.start_container(spec)
    started = site.supervisor.start_container(site.spec("no-such-program", otherwise="nothing"))
    assert started.ran == "nothing"
    assert site.supervisor.wait(started.pid) == 0


def test_responder_stands_in(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "responder.json"
    ports = [{"port": 80}, {"port": 53, "protocol": "UDP"}]
    config.write_text(
        json.dumps({"identity": {"pod": "web-0", "namespace": "default", "node": "node-1"}, "ports": ports})
    )
    started = site.supervisor.start_container(
        site.spec("no-such-program", otherwise="responder", responder=str(config), uid=1000)
    )
    assert started.ran == "responder"
    assert site.shell("curl -s http://127.0.0.1/hostname; curl -s -g http://[::1]/hostname") == "web-0web-0"
    taken = site.spec(responder=str(config))
    with pytest.raises(SupervisorRefusal, match="port 80/TCP: Address already in use"):
        site.supervisor.start_container(taken)
    config.write_text(config.read_text().replace("80", "8081"))
    site.supervisor.signal(started.pid, signal.SIGHUP)
    site.shell("until curl -s http://127.0.0.1:8081/hostname; do :; done; ! curl -s http://127.0.0.1/")
    site.supervisor.signal(started.pid, signal.SIGTERM)
    assert site.supervisor.wait(started.pid) == 0


def test_exec_joins_the_container(site: Site) -> None:
    pid = site.supervisor.start_container(site.spec("sh", "-c", "echo mine > /tmp/f; exec sleep 60")).pid
    until(lambda: os.path.exists(f"/proc/{pid}/root/tmp/f"))
    reader, writer = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    argv = ["sh", "-c", "cat /tmp/f; hostname; cat /proc/self/cgroup; echo $X; exit 4"]
    command = site.supervisor.exec(pid, argv, env={"X": "y"}, fds=(null, writer, null))
    os.close(writer)
    with open(reader) as output:
        lines = output.read().splitlines()
    assert lines[:2] == ["mine", "web-0"]
    assert any(line.endswith(site.cgroup.name) for line in lines)
    assert lines[-1] == "y"
    assert site.supervisor.wait(command) == 4
    with pytest.raises(SupervisorRefusal, match="absent") as refusal:
        site.supervisor.exec(pid, ["absent"], fds=(null, null, null))
    assert refusal.value.reason == "NotFound"
    os.close(null)


def test_exec_with_a_terminal(site: Site) -> None:
    pid = site.supervisor.start_container(site.spec("sleep", "60")).pid
    master, slave = pty.openpty()
    command = site.supervisor.exec(pid, ["sh", "-c", "tty; read x; echo got $x"], tty=True, fds=(slave,) * 3)
    os.close(slave)
    os.write(master, b"word\n")
    assert site.supervisor.wait(command) == 0
    assert b"got word" in os.read(master, 4096)
    os.close(master)


def test_commands_end_with_their_connection(site: Site) -> None:
    pid = site.supervisor.start_container(site.spec("sleep", "60")).pid
    null = os.open(os.devnull, os.O_RDWR)
    with Supervisor(site.socket) as another:
        another.exec(pid, ["sleep", "50"], fds=(null, null, null))
        assert "exec" in {p.kind for p in another.list()}
    os.close(null)
    until(lambda: "exec" not in {p.kind for p in site.supervisor.list()})


def test_killed_service_is_started_again(site: Site, tmp_path: Path) -> None:
    anchor = site.supervisor.start_anchor("node-1", hostname="node-1", cgroup=site.cgroup)
    log = tmp_path / "service.log"
    pid = site.supervisor.start_service(
        "s",
        entry="a_service:run",
        options={"s": 60},
        join=anchor,
        cgroup=site.cgroup,
        log=log,
    )
    assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(f"/proc/{anchor}/ns/net")
    with pytest.raises(SupervisorRefusal, match="running already"):
        site.supervisor.start_service(
            "s", entry="a_service:run", options={}, join=None, cgroup=site.cgroup, log=log
        )
    os.kill(pid, signal.SIGKILL)

    def again() -> list[int]:
        return [p.pid for p in site.supervisor.list() if p.name == "s" and p.pid != pid]

    until(again)
    namespace = os.readlink(f"/proc/{anchor}/ns/net")
    until(lambda: os.readlink(f"/proc/{again()[0]}/ns/net") == namespace)
    site.supervisor.stop("s")
    until(lambda: not [p for p in site.supervisor.list() if p.name == "s"])


def test_failing_service_says_why_in_its_log(site: Site, tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    site.supervisor.start_service(
        "s", entry="no.such:module", options={}, join=None, cgroup=site.cgroup, log=log, restart=False
    )
    until(lambda: log.exists() and "ModuleNotFoundError" in log.read_text())


def test_nonsense_is_refused_and_the_supervisor_goes_on(site: Site) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(site.socket))
        body = b'{"id": 7, "request": {"type": "dance"}}'
        client.sendall(len(body).to_bytes(4, "big") + body)
        size = int.from_bytes(client.recv(4), "big")
        answer = json.loads(client.recv(size))
        assert answer["id"] == 7
        assert "dance" in answer["error"]
        client.sendall(b"\xff\xff\xff\xff")
        assert client.recv(1) == b""
    assert site.supervisor.list() == []


def test_socket_is_private(site: Site) -> None:
    assert site.socket.stat().st_mode & 0o777 == 0o600


def test_log_of_a_large_output_is_whole(site: Site) -> None:
    assert len(site.shell("seq 1 20000").splitlines()) == 20000


def test_command_with_this_terminal(site: Site) -> None:
    """`podlane exec` from a terminal: the command gets one of its own, of the same size."""
    labels = {"namespace": "default", "pod": "p", "container": "c", "kind": "main", "index": "0"}
    site.supervisor.start_container(site.spec("sleep", "60", labels=labels))
    code = (
        "import sys, pathlib; from podlane.lab.supervisor.terminal import run; "
        "sys.exit(run(pathlib.Path(sys.argv[1]), 'default', 'p', '', sys.argv[2:]))"
    )
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    command = ["sh", "-c", "stty size; read x; echo got $x; exit 5"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(site.socket), *command], stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    os.write(master, b"word\n")
    output = b""
    while b"got word" not in output:
        output += os.read(master, 4096)
    assert process.wait(20) == 5
    os.close(master)
    assert b"33 99" in output


@pytest.mark.parametrize(("name", "why"), [("nope", "no running pod 'nope'"), ("p", "no container 'x'")])
def test_command_in_what_is_not_there(site: Site, name: str, why: str) -> None:
    labels = {"namespace": "default", "pod": "p", "container": "c", "kind": "main", "index": "0"}
    site.supervisor.start_container(site.spec("sleep", "60", labels=labels))
    with pytest.raises(LabError, match=why):
        terminal.run(site.socket, "default", name, "x", ["true"])


def test_shared_process_namespace(site: Site) -> None:
    sandbox = site.supervisor.start_sandbox(
        "shared", hostname="s", netns_pid=None, cgroup=site.cgroup, share_pid=True
    )
    site.supervisor.start_container(site.spec("sleep", "61", sandbox_pid=sandbox, share_pid=True))
    seen = site.shell("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", sandbox_pid=sandbox, share_pid=True)
    assert "podlane: shared" in seen
    assert "sleep 61" in seen
