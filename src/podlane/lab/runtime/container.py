"""What a forked process does to become a pod's sandbox, a container, or a command inside one.

Each function here returns the child's part for supervisor/spawn.py: it runs in the forked process, says how
it went on the report, and ends in exec, in the responder, or in pausing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import struct
import termios

from podlane.errors import KernelError
from podlane.lab.runtime import capabilities, responder, rootfs, syscalls
from podlane.lab.runtime.pause import pause
from podlane.lab.supervisor import protocol, spawn

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
# A program, or the interpreter its first line names, that is not there.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENOEXEC)
# Ports below 1024 and ping are no privilege inside a pod, as container runtimes have it.
_POD_SYSCTLS = {
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
}
# What a network or IPC namespace has of its own; any other would be the host's.
_OWN_SYSCTL = re.compile(r"net/|kernel/(shm|msg|sem)|fs/mqueue/")
OOM_SCORE = 900


def sandbox(request: protocol.StartSandbox, pause_fd: int) -> spawn.Child:
    def run(report: spawn.Report) -> None:
        spawn.join_cgroup(request.cgroup)
        if request.netns_pid:
            syscalls.join_namespaces(request.netns_pid, "net")
        kinds = syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWNS
        syscalls.unshare(kinds | (0 if request.netns_pid else syscalls.CLONE_NEWNET))
        syscalls.set_hostname(request.hostname)
        syscalls.mount("none", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
        for directory, size_bytes in request.tmpfs:
            options = "mode=1777" + (f",size={size_bytes}" if size_bytes else "")
            syscalls.mount("tmpfs", directory, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, options)
        if not request.netns_pid:
            _loopback_up()
        sysctls = request.sysctls if request.netns_pid else {**_POD_SYSCTLS, **request.sysctls}
        for name, value in sysctls.items():
            _sysctl(name, value, shared_network=bool(request.netns_pid))
        # Of a shared PID namespace this is process 1: orphans' remains are not kept.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        report.done()
        pause(pause_fd, f"podlane: {request.name}")

    return run


def container(spec: protocol.ContainerSpec, place: str, responder_config: int) -> spawn.Child:
    """responder_config: descriptor of the responder's configuration, -1 when it is not to run."""

    def run(report: spawn.Report) -> None:
        spawn.join_cgroup(spec.cgroup)
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(OOM_SCORE))
        # mnt too: memory volumes are mounted in the sandbox's.
        syscalls.join_namespaces(spec.sandbox_pid, "net", "ipc", "mnt")
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
        syscalls.set_hostname(spec.hostname)
        rootfs.enter(spec, place)
        if spec.tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if spec.argv:
            os.chdir(spec.cwd or "/")
            _drop_rights(spec)
            ran = _execute(spec, spec.argv, spec.env, report)
            if ran:
                report.done(ran)
                if ran == "nothing":
                    return
        else:
            _drop_rights(spec)
        syscalls.set_process_name("pl-responder")
        responder.serve(responder_config, ready=lambda: report.done("responder"))

    return run


def command(spec: protocol.ContainerSpec, pid: int, request: protocol.Exec) -> spawn.Child:
    """A command beside the container's own process `pid`, in its namespaces, with its rights."""

    def run(report: spawn.Report) -> None:
        spawn.join_cgroup(spec.cgroup)
        syscalls.join_namespaces(pid, "net", "ipc", "uts", "mnt")
        if request.tty:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chdir(spec.cwd or "/")
        _drop_rights(spec)
        env = {**spec.env, **({"TERM": "xterm"} if request.tty else {}), **request.env}
        try:
            os.execvpe(request.argv[0], request.argv, env)
        except OSError as error:
            reason = "NotFound" if error.errno in _ABSENT else ""
            report.failed(OSError(error.errno, f"{request.argv[0]}: {error.strerror}"), reason)

    return run


def _execute(spec: protocol.ContainerSpec, argv: list[str], env: dict[str, str], report: spawn.Report) -> str:
    """Becomes the program, or returns what to do instead: "" for the responder, "nothing"."""
    try:
        os.execvpe(argv[0], argv, env)
    except OSError as error:
        if error.errno not in _ABSENT or spec.otherwise == "fail":
            raise KernelError.of(error.errno or 0, f"exec {argv[0]}") from None
        return "nothing" if spec.otherwise == "nothing" else ""


def _drop_rights(spec: protocol.ContainerSpec) -> None:
    allowed = capabilities.mask(spec.capabilities)
    capabilities.bound(allowed)
    if spec.no_new_privs:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    os.setgroups(spec.groups)
    os.setresgid(spec.gid, spec.gid, spec.gid)
    os.setresuid(spec.uid, spec.uid, spec.uid)
    if spec.uid == 0:
        capabilities.assume(allowed)


def _loopback_up() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        request = struct.pack("16sh22x", b"lo", 0)
        flags = struct.unpack_from("h", fcntl.ioctl(probe, SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | IFF_UP))


def _sysctl(name: str, value: str, *, shared_network: bool) -> None:
    """name: with dots, as `net.core.somaxconn`, or with slashes where a link's name has dots (sysctl(8))."""
    parts = name.split("/") if "/" in name else name.split(".")
    own = _OWN_SYSCTL.match("/".join(parts)) and ".." not in parts
    if not own or (shared_network and parts[0] == "net"):
        raise KernelError.of(
            errno.EPERM,
            f"sysctl {name}",
            "it is not the pod's own; net.* (without hostNetwork), kernel.shm*, kernel.msg*, kernel.sem and "
            "fs.mqueue.* are",
        )
    path = "/proc/sys/" + "/".join(parts)
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError as error:
        raise KernelError.of(error.errno or 0, f"sysctl {name}={value}") from None
