"""Debian's containerd and runc on a node of their own: a network namespace, mounts and processes apart.

The first process of the site's PID namespace ends with the site, and everything in it with that:
containerd, its shims, the sandboxes. /run is the site's own, where containerd mounts network namespaces
and where its shims' sockets are; so a plugin's CNI_NETNS is a path that only containerd sees.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import wait_until
from tests.netns.cri import PortMapping, RpcError, Runtime

PROGRAMS = ("containerd", "containerd-shim-runc-v2", "runc", "ctr", "gcc")
PAUSE = """
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) { signal(SIGTERM, exit); signal(SIGINT, exit); for (;;) pause(); }
"""
IMAGE = "podlane.test/pause:1"
_UNUSED = (
    "internal.v1.opt",
    "internal.v1.tracing",
    "tracing.processor.v1.otlp",
    *(f"snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")),
)
_CGROUPS = Path("/sys/fs/cgroup")


def missing() -> list[str]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def pause_image(where: Path) -> Path:
    """A docker archive with one static program, as `docker save` writes it."""
    (where / "pause.c").write_text(PAUSE)
    subprocess.run(["gcc", "-Os", "-static", "-o", where / "pause", where / "pause.c"], check=True)
    layer = _tar({"pause": ((where / "pause").read_bytes(), 0o755)})
    config = json.dumps(
        {
            "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}"]},
            "history": [{"created_by": "podlane"}],
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    path = where / "pause.tar"
    path.write_bytes(
        _tar(
            {
                "layer.tar": (layer, 0o644),
                "config.json": (config, 0o644),
                "manifest.json": (json.dumps(manifest).encode(), 0o644),
            }
        )
    )
    return path


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, (data, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


class Pod(NamedTuple):
    """fd: of its network namespace, which containerd mounted under the name `namespace`."""

    sandbox: str
    namespace: str
    fd: int


class Containerd:
    """`with` it: containerd runs, and has the pause image. kill() and start() are for what is within.

    node: the network namespace it acts on. bin_dir, conf_dir: where it looks for plugins and networks.
    """

    def __init__(self, node: int, where: Path, bin_dir: Path, conf_dir: Path) -> None:
        self.node, self.where = node, where
        self.socket = where / "c.sock"
        self.cgroup = f"podlane-test-{os.getpid()}-{where.name}"
        self.runtime = Runtime(self.socket)
        (where / "config.toml").write_text(_config(where, self.socket, bin_dir, conf_dir))
        self._init: subprocess.Popen[bytes] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Containerd:
        with Rtnl(self.node) as rt:
            rt.set_up("lo")
        # dash reaps what is left to it while it waits.
        # /var/lib: the runtime library keeps results of CNI in /var/lib/cni, whatever it is told.
        script = (
            "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && : > $1 && sleep infinity & wait"
        )
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with netns.entered(self.node), (self.where / "site.log").open("wb") as log:
            self._init = subprocess.Popen(
                [*apart, "sh", "-c", script, "sh", self.where / "begun"], stderr=log
            )
        try:
            wait_until(lambda: (self.where / "begun").exists(), "the site's first process runs")
            self.start()
            self._import(pause_image(self.where))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, RpcError):
            for sandbox in self.runtime.sandboxes():
                self.runtime.remove(sandbox)
        if self._init is not None:
            inner = self._first
            os.kill(inner, signal.SIGKILL)  # and with it everything in its PID namespace
            self._init.wait()
        if self._daemon is not None:
            self._daemon.wait()
        for directory in (*_CGROUPS.glob(f"*/{self.cgroup}"), _CGROUPS / self.cgroup):
            wait_until(lambda d=directory: _removed(d), f"{directory} is empty")

    @property
    def _first(self) -> int:
        """The first process of the site, as seen from here."""
        assert self._init is not None
        (child,) = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        return int(child)

    def _inside(self, *command: str | Path) -> list[str | Path]:
        return ["nsenter", "--mount", "--pid", "--net", f"--target={self._first}", "--", *command]

    def start(self) -> None:
        with (self.where / "containerd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self._inside("containerd", "--config", self.where / "config.toml"), stdout=log, stderr=log
            )
        wait_until(self._answers, f"containerd answers; see {self.where}/containerd.log", 40)

    def _answers(self) -> bool:
        assert self._daemon is not None
        assert self._daemon.poll() is None, (self.where / "containerd.log").read_text()[-2000:]
        try:
            return self.runtime.conditions()["RuntimeReady"][0]
        except (OSError, RpcError, KeyError):
            return False

    def kill(self) -> None:
        """containerd alone: sandboxes and their shims go on."""
        assert self._daemon is not None
        # nsenter stands before it, to be in the PID namespace.
        (child,) = Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        self._daemon.wait()

    def _import(self, image: Path) -> None:
        command = self._inside("ctr", "-a", self.socket, "-n", "k8s.io", "images", "import", image)
        subprocess.run(command, check=True, capture_output=True)

    def network_ready(self) -> bool:
        return self.runtime.conditions()["NetworkReady"][0]

    def namespaces(self) -> set[str]:
        """Names under which containerd mounted network namespaces."""
        directory = Path(f"/proc/{self._first}/root/run/netns")
        return {path.name for path in directory.iterdir()} if directory.exists() else set()

    def run(
        self, name: str, ports: Sequence[PortMapping] = (), annotations: Mapping[str, str] | None = None
    ) -> Pod:
        before = self.namespaces()
        sandbox = self.runtime.run(name, ports, annotations, f"/{self.cgroup}")
        (made,) = self.namespaces() - before
        return Pod(sandbox, made, netns.open_path(f"/proc/{self._first}/root/run/netns/{made}"))

    def end(self, pod: Pod) -> None:
        """As a kubelet ends a pod."""
        os.close(pod.fd)
        self.runtime.stop(pod.sandbox)
        self.runtime.remove(pod.sandbox)


def _removed(directory: Path) -> bool:
    for below in sorted((p for p in directory.rglob("*") if p.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            below.rmdir()
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        time.sleep(0.02)
        return False
    return True


def _config(where: Path, socket: Path, bin_dir: Path, conf_dir: Path) -> str:
    return f"""
version = 2
root = "{where}/root"
state = "{where}/state"
disabled_plugins = [{", ".join(f'"io.containerd.{name}"' for name in _UNUSED)}]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin_dir}"
    conf_dir = "{conf_dir}"
"""
