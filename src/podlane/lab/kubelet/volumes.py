"""A pod's volumes on disk, and where its containers mount them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from podlane.lab.client import Obj
from podlane.lab.kubelet.context import NodeContext, PodFiles
from podlane.lab.runtime import env, names, volumes
from podlane.lab.runtime.volumes import TOKEN_MOUNT, VolumeMissing
from podlane.lab.supervisor.protocol import Mount


class PodVolumes:
    """`prepare` writes them, again whenever an object they are made from has changed."""

    def __init__(self, node: NodeContext, files: PodFiles) -> None:
        self._node, self._files = node, files
        self._plans: dict[str, volumes.Plan] = {}
        self.notes: list[str] = []

    async def prepare(self, pod: Obj) -> None:
        """Raises VolumeMissing naming the volume: nothing can start yet."""
        wanted = volumes.references(pod)
        objects = await self._node.world.objects(pod["metadata"]["namespace"], wanted)
        gid = (pod["spec"].get("securityContext") or {}).get("fsGroup")
        plans, notes = {}, []
        for volume in pod["spec"].get("volumes") or ():
            name = volume["name"]
            try:
                plan = volumes.plan(volume, pod, objects, self._node.token, self._node.ca_pem)
                self._make(name, plan, gid)
            except (VolumeMissing, ValueError) as error:
                raise VolumeMissing(f'MountVolume.SetUp failed for volume "{name}" : {error}') from None
            except OSError as error:
                what = f"{error.strerror}: {error.filename}"
                raise VolumeMissing(f'MountVolume.SetUp failed for volume "{name}" : {what}') from None
            plans[name] = plan
            if isinstance(plan, volumes.Directory) and plan.note:
                notes.append(plan.note)
        if _wants_service_account(pod):
            self._write_service_account(pod)
        self._plans, self.notes = plans, notes

    def _write_service_account(self, pod: Obj) -> None:
        """Once a namespace: it is the same for every pod of it."""
        namespace = pod["metadata"]["namespace"]
        if namespace not in self._node.accounts_written:
            account = volumes.service_account(pod, self._node.token, self._node.ca_pem)
            volumes.write(self._node.service_account(namespace), account.files)
            self._node.accounts_written.add(namespace)

    def _make(self, name: str, plan: volumes.Plan, gid: int | None) -> None:
        directory = self._files.volume(name)
        match plan:
            case volumes.Files():
                volumes.write(directory, plan.files, gid)
            case volumes.Directory():
                if not directory.exists():
                    directory.mkdir(parents=True)
                    if gid is not None:
                        os.chown(directory, -1, gid)
                    directory.chmod(0o2777 if gid is not None else 0o777)
            case volumes.HostPath():
                self._host_path(name, plan)

    def _host_path(self, name: str, plan: volumes.HostPath) -> None:
        """What is to be made is made among the pod's files: a manifest changes nothing of the host."""
        real = os.path.realpath(plan.path)
        for own in self._node.hidden:
            if os.path.commonpath([real, os.path.realpath(own)]) in (real, os.path.realpath(own)):
                raise VolumeMissing(
                    f"hostPath {plan.path} holds podlane's own files; choose another directory"
                )
        path = Path(real)
        if real.split("/")[1] in ("proc", "sys", "dev"):
            raise VolumeMissing(f"hostPath {plan.path}: a container has its own, and cannot have the host's")
        if not path.exists() and plan.type in ("", "DirectoryOrCreate", "FileOrCreate"):
            own_path = self._files.volume(name)
            own_path.parent.mkdir(parents=True, exist_ok=True)
            if plan.type == "FileOrCreate":
                own_path.touch()
            else:
                own_path.mkdir(exist_ok=True)
            return
        match plan.type:
            case "":
                ok = path.is_dir() or path.is_file()
            case "Directory" | "DirectoryOrCreate":
                ok = path.is_dir()
            case "File" | "FileOrCreate":
                ok = path.is_file()
            case _:
                raise VolumeMissing(
                    f"hostPath {plan.path}: a {plan.type} of the host is out of a pod's reach"
                )
        if not ok:
            raise VolumeMissing(
                f"hostPath type check failed: {plan.path} is not a {plan.type or 'directory'}"
            )

    @property
    def tmpfs(self) -> list[tuple[str, int]]:
        """Memory volumes: (directory, size in bytes, 0 for the default), to be mounted by the sandbox."""
        return [
            (str(self._files.volume(name)), plan.size_bytes)
            for name, plan in self._plans.items()
            if isinstance(plan, volumes.Directory) and plan.in_memory
        ]

    def mounts(self, pod: Obj, container: Obj, variables: Mapping[str, str]) -> list[Mount]:
        """Of one container: names first, then its volumes, those nearer the root first."""
        found = list(self._names(container))
        targets = set()
        for mount in container.get("volumeMounts") or ():
            plan = self._plans.get(mount["name"])
            if plan is None:
                continue  # the API has refused it already
            sub_path = mount.get("subPath") or env.expand(mount.get("subPathExpr") or "", variables)
            source = self._files.volume(mount["name"])
            of_host = isinstance(plan, volumes.HostPath) and not source.exists()
            if isinstance(plan, volumes.HostPath) and of_host:
                source = Path(plan.path)
            read_only = bool(mount.get("readOnly")) or isinstance(plan, volumes.Files)
            target = os.path.normpath(os.path.join("/", mount["mountPath"]))
            targets.add(target)
            found.append(
                Mount(
                    source=str(source),
                    target=target,
                    sub_path=sub_path.strip("/"),
                    read_only=read_only,
                    of_host=of_host,
                )
            )
        if _wants_service_account(pod) and TOKEN_MOUNT not in targets:
            account = str(self._node.service_account(pod["metadata"]["namespace"]))
            found.append(Mount(source=account, target=TOKEN_MOUNT, read_only=True))
        return sorted(found, key=lambda m: m.target.count("/") if m.target != "/" else 0)

    def _names(self, container: Obj) -> Iterable[Mount]:
        own = {os.path.normpath(m["mountPath"]) for m in container.get("volumeMounts") or ()}
        for target, source in (
            ("/etc/hosts", self._files.hosts),
            ("/etc/hostname", self._files.hostname),
            ("/etc/resolv.conf", self._files.resolv_conf),
        ):
            if target not in own:
                yield Mount(source=str(source), target=target)


def _wants_service_account(pod: Obj) -> bool:
    """Unless the API server has put its own projected volume there (every container then mounts it)."""
    return pod["spec"].get("automountServiceAccountToken") is not False


def write_names(node: NodeContext, files: PodFiles, pod: Obj, addresses: list[str]) -> None:
    """The pod's /etc/hosts, /etc/hostname and /etc/resolv.conf."""
    domain = node.facts.config.cluster_domain
    files.hosts.parent.mkdir(parents=True, exist_ok=True)
    files.hosts.write_text(names.hosts_file(pod, addresses, domain))
    files.hostname.write_text(names.kernel_hostname(pod, domain) + "\n")
    files.resolv_conf.write_text(names.resolv_conf(pod, node.facts.config, node.resolv_conf()))
