"""The proxy's process: started, adopted, asked over its socket.

It runs beside the agent and outlives it. `directory` holds udp.sock, udp.pid and udp.log.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from podlane.engines.udp import control
from podlane.engines.udp.control import Answer, Request
from podlane.errors import KernelError, UnsupportedError

ANSWER_TIMEOUT_S: Final = 5.0
START_TIMEOUT_S: Final = 10.0
_MODULE: Final = "podlane.engines.udp.proxy"


def require() -> None:
    """Raises UnsupportedError."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise UnsupportedError("backend.type udp needs /dev/net/tun (kernel module tun); use vxlan")


class UdpProcess:
    """directory: its own, made when it is absent; short enough for a unix socket's path (107 bytes)."""

    def __init__(self, directory: Path, device: str) -> None:
        self.directory, self.device = directory, device
        self.socket = directory / "udp.sock"
        self.pid_file, self.log = directory / "udp.pid", directory / "udp.log"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 when there is none, or another process has its number by now."""
        if self._child is not None and self._child.poll() is not None:
            self._child = None  # collected: else it would stay as a zombie
        try:
            pid = int(self.pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")  # a zombie has none
        except (OSError, ValueError):
            return 0
        return pid if os.fsencode(self.socket) in words else 0

    def ensure(self) -> int:
        """Runs and answers when it returns. Returns how many steps that took. Raises KernelError."""
        if self.pid:
            try:
                self.ask(Request())
            except KernelError:
                self.stop()
            else:
                return 0
        self._start()
        return 1

    def stop(self) -> int:
        """Ends it; its device stays. Returns 0 when there was none."""
        pid = self.pid
        for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0)):
            if not self.pid:
                break
            os.kill(pid, number)
            deadline_s = time.monotonic() + patience_s
            while self.pid and time.monotonic() < deadline_s:
                time.sleep(0.005)
        self.pid_file.unlink(missing_ok=True)
        return 1 if pid else 0

    def ask(self, request: Request) -> Answer:
        """Raises KernelError when it refuses, or nobody answers."""
        what = f"ask the UDP proxy of {self.device}"
        received = b""
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(ANSWER_TIMEOUT_S)
                door.connect(str(self.socket))
                door.sendall(control.encode(request))
                while not received.endswith(b"\n"):
                    chunk = door.recv(1 << 20)
                    if not chunk:
                        raise ConnectionResetError(errno.ECONNRESET, "it closed the connection")
                    received += chunk
            answer = control.answer(received)
        except (OSError, ValueError) as error:
            number = getattr(error, "errno", None) or errno.EIO
            raise KernelError.of(number, what, str(error)) from None
        if answer.error:
            raise KernelError.of(errno.EINVAL, what, answer.error)
        return answer

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.socket.unlink(missing_ok=True)
        with open(self.log, "wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", _MODULE, self.device, str(self.socket)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH")},
                cwd="/",
            )
        self.pid_file.write_text(str(self._child.pid))
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._listens():
            if self._child.poll() is not None or time.monotonic() > deadline_s:
                said = self.log.read_text(errors="replace").strip().splitlines()[-3:]
                why = " ".join(" ".join(said).split()) or "it does not come up"
                raise KernelError.of(errno.EIO, f"start the UDP proxy of {self.device}", why[:500])
            time.sleep(0.005)

    def _listens(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.connect(str(self.socket))
        except OSError:
            return False
        return True
