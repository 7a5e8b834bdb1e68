"""The BIRD daemon: started, adopted, asked over its control socket.

It runs beside the agent and outlives it: an agent that starts finds the daemon of its earlier life and goes
on with it. Three files in one directory: bird.conf, bird.ctl (the socket), bird.pid.

The socket speaks lines: four digits, a space (the last line of an answer) or a minus, text; 0... to 2... are
answers, 8... and 9... refusals (BIRD programmer's documentation, cli.c).
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from podlane.errors import KernelError, UnsupportedError

ANSWER_TIMEOUT_S = 5.0
START_TIMEOUT_S = 5.0


def require() -> str:
    """The program's path. Raises UnsupportedError."""
    program = shutil.which("bird", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise UnsupportedError("BGP (backend.type bgp, or bgp.peers) needs BIRD 2: install the package bird2")
    return program


class BirdProcess:
    """directory: its own, made when it is absent; short enough for a unix socket's path (107 bytes)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config, self.socket = directory / "bird.conf", directory / "bird.ctl"
        self.pid_file, self.log = directory / "bird.pid", directory / "bird.log"

    @property
    def pid(self) -> int:
        """0 when there is none, or another process has its number by now."""
        try:
            pid = int(self.pid_file.read_text())
            return pid if Path(f"/proc/{pid}/comm").read_text().strip() == "bird" else 0
        except (OSError, ValueError):
            return 0

    def configured(self) -> str:
        """The text it was configured with last; "" when there is none."""
        try:
            return self.config.read_text()
        except OSError:
            return ""

    def configure(self, text: str) -> int:
        """Running and configured with `text` when it returns. Returns how many steps that took, 0 for none.

        Raises KernelError with BIRD's own words; then it goes on as it was.
        """
        alive, before = bool(self.pid), self.configured()
        if alive and before == text:
            return 0
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(text)
        try:
            if alive:
                self._reconfigure()
            else:
                self._start(recovering=bool(before))
        except KernelError:
            if alive:
                self._write(before)
            raise
        return 1

    def stop(self) -> int:
        """Ends it. Its routes stay in the kernel until somebody takes them out (`persist`)."""
        if not self.pid:
            return 0
        self.ask("down")
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
        while self.pid and time.monotonic() < deadline_s:
            time.sleep(0.01)
        self.config.unlink(missing_ok=True)
        return 1

    def _write(self, text: str) -> None:
        temporary = self.config.with_suffix(".new")
        temporary.touch(mode=0o600)
        temporary.write_text(text)
        temporary.replace(self.config)

    def _reconfigure(self) -> None:
        answer = self.ask("configure soft")
        if answer[:1] in "89":
            raise _refused("configure", answer)

    def _start(self, *, recovering: bool) -> None:
        self.socket.unlink(missing_ok=True)
        # -R: sessions begin as after a restart, so that peers that kept our routes go on keeping them.
        command = [require(), "-c", str(self.config), "-s", str(self.socket), "-P", str(self.pid_file)]
        done = subprocess.run(
            [*command, *(["-R"] if recovering else [])],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        if done.returncode:
            raise _refused("start", done.stderr or done.stdout)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (self.pid and self.socket.exists()):
            if time.monotonic() > deadline_s:
                raise _refused("start", f"it does not come up; see {self.log}")
            time.sleep(0.005)

    def ask(self, command: str) -> str:
        """The answer's lines, each with its number. Raises KernelError when nobody answers."""
        received = b""
        try:
            with socket.socket(socket.AF_UNIX) as door:
                door.settimeout(ANSWER_TIMEOUT_S)
                door.connect(str(self.socket))
                _until_complete(door)
                door.sendall(command.encode() + b"\n")
                received = _until_complete(door)
        except OSError as error:
            raise KernelError.of(error.errno or errno.EIO, f"ask BIRD: {command}", str(error)) from None
        return received.decode(errors="replace").strip()


def _until_complete(door: socket.socket) -> bytes:
    received = b""
    while True:
        chunk = door.recv(1 << 16)
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, "BIRD closed the connection")
        received += chunk
        if received.endswith(b"\n"):
            last = received[:-1].rpartition(b"\n")[2]
            if last[:4].isdigit() and last[4:5] in (b" ", b""):
                return received


def _refused(what: str, words: str) -> KernelError:
    return KernelError.of(errno.EINVAL, f"{what} BIRD", " ".join(words.split())[:500])
