"""What this machine must have for a lab, asked before anything is made."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from podlane.errors import KernelError, LabError, UnsupportedError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from podlane.lab import cgroups
from podlane.model import stores
from podlane.model.backends import BackendType
from podlane.model.config import NetworkConfig, ServiceMode
from podlane.model.stores import StoreKind

_COMMANDS = {"nft": "nftables"}


def require(config: NetworkConfig) -> None:
    """Raises LabError or UnsupportedError naming everything that is missing and what would help."""
    if sys.platform != "linux":
        raise UnsupportedError(f"podlane needs Linux, this is {sys.platform}")
    if os.geteuid() != 0:
        raise LabError(
            "root is required: namespaces, nftables and mounts are the network; try `sudo podlane ...`"
        )
    missing = [
        f"the command `{command}` (package {package})"
        for command, package in _COMMANDS.items()
        if shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    if "overlay" not in Path("/proc/filesystems").read_text():
        missing.append("overlayfs (kernel module overlay)")
    cgroup = cgroups.mount_point()
    if not (cgroup / "cgroup.procs").exists():
        missing.append(f"a usable cgroup v2 at {cgroup}")
    missing += _missing_links()
    if missing:
        raise UnsupportedError("this machine lacks " + "; ".join(missing))
    if config.speaks_bgp:
        from podlane.engines.bird import process

        process.require()
    if config.backend.type is BackendType.WIREGUARD:
        from podlane.engines.wireguard.process import require as require_wireguard

        require_wireguard()
    if config.backend.type is BackendType.UDP:
        from podlane.engines.udp import process as udp

        udp.require()
    if config.backend.type is BackendType.IPIP:
        from podlane.kernel.ipip import programs

        programs.require()
    if stores.parse(config.store).kind is StoreKind.LOCAL:
        from podlane.lab import etcd

        etcd.require()
    if config.services.mode is ServiceMode.SOCKET:
        from podlane.kernel.bpf import installation

        installation.require()


def _missing_links() -> list[str]:
    """Link types the kernel refuses, tried in a namespace of their own."""
    try:
        namespace = netns.new()
    except KernelError as error:
        return [f"network namespaces ({error})"]
    missing = []
    try:
        with Rtnl(namespace) as rtnl:
            try:
                rtnl.create_bridge("try0")
            except KernelError as error:
                missing.append(f"bridges ({error})")
            try:
                rtnl.create_veth("try1", "try2")
            except KernelError as error:
                missing.append(f"veth pairs ({error})")
    finally:
        os.close(namespace)
    return missing
