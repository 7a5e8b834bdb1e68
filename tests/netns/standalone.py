"""`podlane agent --standalone` in a namespace, and a caller that drives plugins as cnitool does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from podlane.kernel import netns

MAIN = "from podlane.cli.main import main; main()"
REFERENCE = Path("/usr/lib/cni")  # Debian's containernetworking-plugins


class Refusal(Exception):
    """A plugin's error: its code and message."""

    def __init__(self, status: int, answer: dict[str, Any]) -> None:
        super().__init__(f"{answer.get('code')}: {answer.get('msg')}")
        self.status, self.code, self.message = status, answer.get("code"), answer.get("msg", "")


class Caller:
    """Executes the plugins of a directory in a node's namespace: environment and stdin, nothing else."""

    def __init__(self, node: int, path: Path | str) -> None:
        self.node, self.path = node, str(path)

    def start(self, verb: str, kind: str, stdin: bytes, **environment: str) -> subprocess.Popen[bytes]:
        program = next(p for d in self.path.split(":") if (p := Path(d, kind)).exists())
        given = {"CNI_COMMAND": verb, "CNI_PATH": self.path, "PATH": os.environ["PATH"], **environment}
        with netns.entered(self.node):
            return subprocess.Popen(
                [program],
                env=given,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    def raw(self, verb: str, kind: str, stdin: bytes, **environment: str) -> tuple[int, bytes]:
        with self.start(verb, kind, stdin, **environment) as child:
            stdout, _ = child.communicate(stdin, timeout=60)
        return child.returncode, stdout

    def call(
        self,
        verb: str,
        container: str,
        pod: int | None,
        config: dict[str, Any],
        ifname: str = "eth0",
        **more: str,
    ) -> dict[str, Any]:
        environment = {"CNI_CONTAINERID": container, "CNI_IFNAME": ifname, **more}
        if pod is not None:
            environment["CNI_NETNS"] = f"/proc/{os.getpid()}/fd/{pod}"
        status, stdout = self.raw(verb, config["type"], json.dumps(config).encode(), **environment)
        answer = json.loads(stdout) if stdout else {}
        if status:
            raise Refusal(status, answer)
        return answer


class Standalone:
    """`with` it for one life; start() and kill() for the lives within."""

    def __init__(self, node: int, where: Path, *flags: str) -> None:
        self.node, self.where, self.flags = node, where, flags
        self.bin, self.conf = where / "opt" / "bin", where / "etc" / "net.d"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Standalone:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(20) == 0

    def start(self) -> None:
        run = self.where / "run"
        options = {
            "node-name": "n1",
            "state-dir": self.where / "state",
            "cni-socket": run / "cni.sock",
            "agent-socket": run / "agent.sock",
            "cni-bin-dir": self.bin,
            "cni-conf-dir": self.conf,
        }
        flags = [*(f"--{name}={value}" for name, value in options.items()), *self.flags]
        with netns.entered(self.node):
            self.process = subprocess.Popen([sys.executable, "-c", MAIN, "agent", "--standalone", *flags])
        self.wait()

    def wait(self) -> None:
        """Until the door is open."""
        end_s = time.monotonic() + 20
        while not (self._installed() and self._answers()):
            assert self.process is not None
            assert self.process.poll() is None
            assert time.monotonic() < end_s, "the agent does not open its socket"
            time.sleep(0.02)

    def _installed(self) -> bool:
        return (self.bin / "flannel").is_symlink()

    def _answers(self) -> bool:
        _, stdout = Caller(self.node, self.bin).raw("STATUS", "loopback", STATUS)
        return not stdout

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    @property
    def caller(self) -> Caller:
        return Caller(self.node, self.bin)


STATUS = b'{"cniVersion": "1.1.0", "name": "any", "type": "loopback"}'
