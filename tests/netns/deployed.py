"""A container of deploy/podlane.yaml, run by runc as a kubelet would have it run.

Its arguments, its capabilities and no others, its mounts, a read-only root, and /proc/sys read-only as
containerd makes it. The root is made of this machine's /usr and the source tree; the host's paths are in a
directory of the test's, but for /proc/sys/net. What is not here: seccomp and AppArmor profiles, which come
with the runtime.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.netns.agent_nodes import wait_until

Obj = dict[str, Any]
ROOT = Path(__file__).parents[2]
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
MANIFEST = ROOT / "deploy" / "podlane.yaml"
# containerd's, of every container that is not privileged (pkg/cri/opts, oci/spec.go)
_MASKED = ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi"]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def missing() -> bool:
    return shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None


def manifest(kind: str, name: str, path: Path = MANIFEST) -> Obj:
    found = (obj for obj in yaml.safe_load_all(path.read_text()) if obj)
    return next(o for o in found if (o["kind"], o["metadata"]["name"]) == (kind, name))


class Deployed:
    """A container of a workload's pod template, in network namespace netns_fd.

    host: the directory that stands for the host's root. files: mount path -> content: of ConfigMaps, and what
    the kubelet gives of a service account.
    """

    def __init__(
        self,
        pod: Obj,
        container: Obj,
        netns_fd: int,
        host: Path,
        environment: Mapping[str, str],
        files: Mapping[str, Mapping[str, str]],
    ) -> None:
        self.name = f"podlane-test-{os.getpid()}-{host.parent.name}-{container['name']}"
        self.host, self.bundle = host, host.parent / f"bundle-{container['name']}"
        self.log = host.parent / f"{container['name']}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._spec = self._make(pod, container, netns_fd, environment, files)

    def _make(
        self,
        pod: Obj,
        container: Obj,
        netns_fd: int,
        environment: Mapping[str, str],
        files: Mapping[str, Mapping[str, str]],
    ) -> Obj:
        arguments = list(container["args"])
        for name, value in environment.items():
            arguments = [each.replace(f"$({name})", value) for each in arguments]
        security = container["securityContext"]
        capabilities = [f"CAP_{name}" for name in security["capabilities"].get("add") or ()]
        user = security.get("runAsUser", pod.get("securityContext", {}).get("runAsUser", 0))
        held = [] if user else capabilities
        sets = {"bounding": capabilities, "effective": held, "permitted": held}
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE": "1", **environment}
        return {
            "ociVersion": "1.0.2",
            "hostname": "node",
            "root": {"path": "root", "readonly": security["readOnlyRootFilesystem"]},
            "process": {
                "args": [str(Path(sys.executable).with_name("podlane")), *arguments],
                "cwd": "/",
                "env": [f"{name}={value}" for name, value in env.items()],
                "user": {"uid": user, "gid": user},
                "capabilities": {**sets, "inheritable": [], "ambient": []},
                "noNewPrivileges": not security["allowPrivilegeEscalation"],
            },
            "mounts": self._mounts(pod, container, files),
            "linux": {
                "cgroupsPath": f"/{self.name}",
                "namespaces": [
                    {"type": "mount"},
                    {"type": "ipc"},
                    {"type": "uts"},
                    *([] if pod.get("hostPID") else [{"type": "pid"}]),
                    {"type": "network", "path": f"/proc/{os.getpid()}/fd/{netns_fd}"},
                ],
                "maskedPaths": _MASKED,
                "readonlyPaths": _READ_ONLY,
            },
        }

    def _mounts(self, pod: Obj, container: Obj, files: Mapping[str, Mapping[str, str]]) -> list[Obj]:
        root = self.bundle / "root"
        root.mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", name).is_symlink():
                (root / name).symlink_to(os.readlink(Path("/", name)))
        found = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "ro"]},
        ]
        code = {"/usr", str(ROOT), str(Path(sys.executable).resolve().parents[1])}
        found += [_bind(path, path, read_only=True) for path in sorted(code)]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        account = [{"name": ACCOUNT, "mountPath": ACCOUNT, "readOnly": True}] if ACCOUNT in files else []
        volumes[ACCOUNT] = {"name": "account", "configMap": {}}
        for mount in container["volumeMounts"] + account:
            volume, where = volumes[mount["name"]], mount["mountPath"]
            if "configMap" in volume:
                source = self.bundle / volume["name"]
                source.mkdir()
                for name, text in files[where].items():
                    (source / name).write_text(text)
            elif (path := volume["hostPath"]["path"]) == "/proc/sys/net":
                source = Path(path)
            else:
                source = Path(f"{self.host}{path}")
                source.parent.mkdir(parents=True, exist_ok=True)
                if volume["hostPath"]["type"] == "FileOrCreate":
                    source.touch()
                else:
                    source.mkdir(exist_ok=True)
            found.append(_bind(str(source), where, read_only=mount.get("readOnly", False)))
        for each in found:
            # The root is read-only: the places of mounts are there before. runc makes those on other mounts.
            place = root / each["destination"].lstrip("/")
            if Path(each["source"]).is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
            elif not each["destination"].startswith("/sys/"):
                place.mkdir(parents=True, exist_ok=True)
        return found

    # --- life ---

    def start(self) -> None:
        (self.bundle / "config.json").write_text(json.dumps(self._spec))
        self.bundle.parent.joinpath("runc").mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._runc("run", "--bundle", str(self.bundle), self.name), stdout=log, stderr=log
            )

    def wait(self, timeout_s: float = 30.0) -> int:
        """Until it ends by itself. Returns its status."""
        assert self._process is not None
        status = self._process.wait(timeout_s)
        self._process = None
        return status

    def alive(self) -> bool:
        assert self._process is not None
        return self._process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """As a kubelet does: the first process is told, and what is left is killed with its namespace."""
        if self._process is None:
            return
        process, self._process = self._process, None

        def ended() -> bool:
            # One that was started just now is not known to runc yet: it is told again.
            subprocess.run(self._runc("kill", self.name, str(int(number))), check=False, capture_output=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            return process.poll() is not None

        wait_until(ended, f"{self.name} ends")

    def close(self) -> None:
        self.stop(signal.SIGKILL)
        subprocess.run(self._runc("delete", "--force", self.name), check=False, capture_output=True)
        for directory in (*Path("/sys/fs/cgroup").glob(f"*/{self.name}"), Path("/sys/fs/cgroup", self.name)):
            wait_until(lambda d=directory: _gone(d), f"{directory} is empty")

    def _runc(self, *arguments: str) -> list[str]:
        return ["runc", "--root", str(self.bundle.parent / "runc"), *arguments]


def _bind(source: str, destination: str, *, read_only: bool) -> Obj:
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


def _gone(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
