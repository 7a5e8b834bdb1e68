"""wireguard-go, WireGuard in user space: started, adopted, asked over its socket.

It runs beside the agent and outlives it. Its TUN device lives as long as it does. Its socket it puts under
/run/wireguard under the device's name, which nodes of one machine would share: so it gets a mount namespace
in which /run is a directory of its own, `directory`, with wireguard/NAME.sock, wireguard.pid, wireguard.log.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from podlane.engines.wireguard import uapi
from podlane.errors import KernelError, UnsupportedError

ANSWER_TIMEOUT_S: Final = 5.0
START_TIMEOUT_S: Final = 5.0
_COMMAND: Final = "wireguard-go"
_START: Final = 'mount --bind "$1" /run && exec "$2" --foreground "$3"'


def require() -> str:
    """The program's path. Raises UnsupportedError."""
    program = shutil.which(_COMMAND, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise UnsupportedError(
            "backend.type wireguard needs wireguard-go: install the package wireguard-go, or use vxlan "
            "(which does not encrypt)"
        )
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise UnsupportedError("backend.type wireguard needs /dev/net/tun (kernel module tun), or use vxlan")
    return program


class WireguardProcess:
    """directory: its own, made when it is absent; short enough for a unix socket's path (107 bytes)."""

    def __init__(self, directory: Path, device: str) -> None:
        self.directory, self.device = directory, device
        self.socket = directory / "wireguard" / f"{device}.sock"
        self.pid_file, self.log = directory / "wireguard.pid", directory / "wireguard.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 when there is none, or another process has its number by now."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None  # collected: else it would stay as a zombie
        try:
            pid = int(self.pid_file.read_text())
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (OSError, ValueError):
            return 0
        name, _, rest = stat.partition("(")[2].rpartition(")")
        return pid if name == _COMMAND and rest.split()[0] != "Z" else 0

    def ensure(self) -> int:
        """Runs and answers when it returns. Returns how many steps that took. Raises KernelError."""
        if self.pid:
            try:
                self.ask(uapi.GET)
            except KernelError:
                self.stop()
            else:
                return 0
        self._start()
        return 1

    def stop(self) -> int:
        """Ends it; its device goes with it. Returns 0 when there was none."""
        pid = self.pid
        for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            if not self.pid:
                break
            os.kill(pid, number)
            deadline_s = time.monotonic() + patience_s
            while self.pid and time.monotonic() < deadline_s:
                time.sleep(0.01)
        self.pid_file.unlink(missing_ok=True)
        return 1 if pid else 0

    def read(self) -> uapi.Device:
        """What it is configured to. Raises KernelError."""
        try:
            return uapi.parse(self.ask(uapi.GET))
        except ValueError as error:
            raise KernelError.of(errno.EPROTO, "read WireGuard", str(error)) from None

    def silent(self) -> set[str]:
        """Keys of the peers without a handshake. Raises KernelError."""
        return uapi.silent(self.ask(uapi.GET))

    def write(self, lines: list[str]) -> None:
        """Raises KernelError with what it refuses."""
        self.ask(uapi.command(lines))

    def ask(self, command: str) -> str:
        """The whole answer. Raises KernelError when it is a refusal, or nobody answers."""
        received = b""
        what = f"ask wireguard-go of {self.device}: {command.partition('=')[0]}"
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(ANSWER_TIMEOUT_S)
                door.connect(str(self.socket))
                door.sendall(command.encode())
                while not received.endswith(uapi.ENDED):
                    chunk = door.recv(1 << 16)
                    if not chunk:
                        raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
                    received += chunk
            refusal = uapi.error_of(received.decode())
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None) or errno.EIO
            raise KernelError.of(number, what, str(error)) from None
        if refusal:
            raise KernelError.of(refusal, what)
        return received.decode()

    def _start(self) -> None:
        self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.unlink(missing_ok=True)
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _START, "sh"]
        with open(self.log, "wb") as output:
            self._child = subprocess.Popen(
                [*command, str(self.directory), require(), self.device],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={"PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), "LOG_LEVEL": "error"},
                cwd="/",
            )
        self.pid_file.write_text(str(self._child.pid))
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (self.pid and self.socket.exists()):
            if self._child is None or self._child.poll() is not None or time.monotonic() > deadline_s:
                said = self.log.read_text(errors="replace").strip().splitlines()[-3:]
                why = " ".join(" ".join(said).split()) or "it does not come up"
                raise KernelError.of(errno.EIO, f"start wireguard-go for {self.device}", why[:500])
            time.sleep(0.005)
