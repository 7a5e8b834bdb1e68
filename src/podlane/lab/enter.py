"""Running a command inside a node's, or the outside host's, namespaces and cgroup."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from podlane.errors import KernelError, LabError
from podlane.kernel import netns
from podlane.lab import cgroups

CLONE_NEWUTS = 0x04000000


class CommandNotRunError(LabError):
    """Its exit status is a shell's: 127 for what is not there, 126 for what cannot be executed."""

    def __init__(self, program: str, error: OSError) -> None:
        super().__init__(f"{program}: {error.strerror}")
        self.exit_status = 127 if isinstance(error, FileNotFoundError) else 126


def enter_and_exec(pid: int, command: Sequence[str], cgroup: Path) -> NoReturn:
    """Replaces this process by command, in the net, uts and mount namespaces of process pid.

    Raises LabError when the namespaces are gone, CommandNotRunError when the command cannot be run.
    """
    cgroups.join(cgroups.make(cgroup))
    working = os.getcwd()
    for name, kind in (("uts", CLONE_NEWUTS), ("net", netns.CLONE_NEWNET), ("mnt", netns.CLONE_NEWNS)):
        try:
            fd = netns.open_path(f"/proc/{pid}/ns/{name}")
        except KernelError as error:
            raise LabError(f"the namespaces are gone ({error}); is the lab still running?") from None
        netns.setns(fd, kind)
        os.close(fd)
    try:
        os.chdir(working)
    except OSError:
        os.chdir("/")
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise CommandNotRunError(command[0], error) from None
