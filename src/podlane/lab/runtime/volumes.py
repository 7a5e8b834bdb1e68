"""Volumes: from a pod's words to files, and those files to disk.

What a volume holds is worked out purely (`plan`). Files of ConfigMaps and the like are then written as the
kubelet does it, so that a reader sees all of an update or none: a fresh directory with a time in its
name, `..data` a link to it that is replaced in one step, and every name a link through `..data`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from podlane.lab.runtime import env, quantities
from podlane.lab.runtime.env import Objects

Obj = dict[str, Any]
TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
ROOT_CA = "kube-root-ca.crt"


class VolumeMissing(Exception):
    """What a volume is made from is not there; the pod waits for it."""


class File(Struct, frozen=True):
    """path: below the volume's root."""

    path: str
    data: bytes
    mode: int = 0o644


class Files(Struct, frozen=True):
    files: tuple[File, ...]


class Directory(Struct, frozen=True):
    """An empty directory at first. in_memory: a tmpfs. note: what the user should know of it."""

    in_memory: bool = False
    size_bytes: int = 0
    note: str = ""


class HostPath(Struct, frozen=True):
    """type: of the API: "", DirectoryOrCreate, Directory, FileOrCreate, File, Socket, ..."""

    path: str
    type: str = ""


Plan = Files | Directory | HostPath


def references(pod: Obj) -> set[tuple[str, str]]:
    """The ConfigMaps and Secrets that volumes of the pod name, as (resource, name)."""
    found: set[tuple[str, str]] = set()
    for volume in pod["spec"].get("volumes") or ():
        for source in (volume, *((volume.get("projected") or {}).get("sources") or ())):
            if one := source.get("configMap"):
                found.add(("configmaps", one.get("name", "")))
            if one := source.get("secret"):
                found.add(("secrets", one.get("secretName") or one.get("name", "")))
    return found


def plan(volume: Obj, pod: Obj, objects: Objects, token: str, ca_pem: str) -> Plan:
    """token, ca_pem: what a service account gets here. Raises VolumeMissing."""
    if (source := volume.get("emptyDir")) is not None:
        limit = source.get("sizeLimit")
        size = int(quantities.parse(str(limit))) if limit else 0
        return Directory(source.get("medium") == "Memory", size)
    if source := volume.get("hostPath"):
        return HostPath(source["path"], source.get("type") or "")
    if source := volume.get("configMap"):
        return Files(_config(source, "configmaps", source.get("name", ""), pod, objects))
    if source := volume.get("secret"):
        return Files(_config(source, "secrets", source.get("secretName", ""), pod, objects))
    if source := volume.get("downwardAPI"):
        return Files(_downward(source, pod))
    if (source := volume.get("projected")) is not None:
        return Files(_projected(source, pod, objects, token, ca_pem))
    kind = next((k for k in volume if k != "name"), "nothing")
    what = "a persistent volume claim" if kind == "persistentVolumeClaim" else f"a volume of kind {kind}"
    return Directory(note=f"volume {volume['name']}: {what} is an empty directory here, gone with the pod")


def _config(source: Obj, resource: str, name: str, pod: Obj, objects: Objects) -> tuple[File, ...]:
    default = _mode(source, "defaultMode", 0o644)
    obj = objects.get((resource, name))
    noun = resource.removesuffix("s")
    if obj is None:
        if source.get("optional"):
            return ()
        raise VolumeMissing(f'{noun} "{name}" not found')
    values = env.contents(resource, obj)
    items = source.get("items")
    if items is None:
        return tuple(File(key, data, default) for key, data in sorted(values.items()))
    files = []
    for item in items:
        if item["key"] in values:
            files.append(File(item["path"], values[item["key"]], _mode(item, "mode", default)))
        elif not source.get("optional"):
            raise VolumeMissing(f'{noun} "{name}" references non-existent config key: {item["key"]}')
    return tuple(files)


def _downward(source: Obj, pod: Obj) -> tuple[File, ...]:
    default = _mode(source, "defaultMode", 0o644)
    files = []
    for item in source.get("items") or ():
        if reference := item.get("fieldRef"):
            text = env.field(reference["fieldPath"], pod)
        else:
            text = env.resource_field(item["resourceFieldRef"], {}, pod)
        files.append(File(item["path"], text.encode(), _mode(item, "mode", default)))
    return tuple(files)


def _projected(source: Obj, pod: Obj, objects: Objects, token: str, ca_pem: str) -> tuple[File, ...]:
    default = {"defaultMode": _mode(source, "defaultMode", 0o644)}
    files: list[File] = []
    for part in source.get("sources") or ():
        if one := part.get("configMap"):
            if one.get("name") == ROOT_CA and objects.get(("configmaps", ROOT_CA)) is None:
                # Its controller may not have made it yet; what it holds is known.
                files.append(File("ca.crt", ca_pem.encode(), default["defaultMode"]))
            else:
                files += _config({**default, **one}, "configmaps", one.get("name", ""), pod, objects)
        if one := part.get("secret"):
            files += _config({**default, **one}, "secrets", one.get("name", ""), pod, objects)
        if one := part.get("downwardAPI"):
            files += _downward({**default, **one}, pod)
        if (one := part.get("serviceAccountToken")) is not None:
            files.append(File(one.get("path", "token"), token.encode(), default["defaultMode"]))
    return tuple({file.path: file for file in files}.values())


def service_account(pod: Obj, token: str, ca_pem: str) -> Files:
    """What an API client inside the pod looks for at TOKEN_MOUNT."""
    namespace = pod["metadata"]["namespace"]
    return Files(
        (
            File("token", token.encode()),
            File("ca.crt", ca_pem.encode()),
            File("namespace", namespace.encode()),
        )
    )


def _mode(source: Obj, key: str, default: int) -> int:
    value = source.get(key)
    return default if value is None else int(value)


# --- to disk --------------------------------------------------------------------------------------


def write(directory: Path, files: Sequence[File], gid: int | None = None) -> bool:
    """Makes directory hold exactly these files, in one step for a reader. Whether anything changed.

    gid: the group that owns them (fsGroup). Raises ValueError for a path that leads out.
    """
    wanted: dict[str, File] = {}
    for file in files:
        path = os.path.normpath(file.path)
        if os.path.isabs(path) or path.startswith(".."):
            raise ValueError(f"volume file {file.path!r}: a relative path below the volume is needed")
        wanted[path] = file
    directory.mkdir(parents=True, exist_ok=True)
    link = directory / "..data"
    if link.exists() and _holds(link, wanted):
        return False
    fresh = directory / time.strftime(f"..%Y_%m_%d_%H_%M_%S.{time.time_ns() % 10**9:09d}", time.gmtime())
    fresh.mkdir(0o755)
    for path, file in wanted.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
        target.chmod(file.mode | (0o440 if gid is not None else 0))
        if gid is not None:
            os.chown(target, -1, gid)
    old = os.readlink(link) if link.is_symlink() else ""
    temporary = directory / "..data_tmp"
    temporary.symlink_to(fresh.name)
    temporary.replace(link)
    tops = {path.split("/")[0] for path in wanted}
    for top in tops:
        if not (directory / top).is_symlink():
            (directory / top).symlink_to(f"..data/{top}")
    for entry in os.listdir(directory):
        if not entry.startswith("..") and entry not in tops:
            (directory / entry).unlink()
    if old:
        shutil.rmtree(directory / old)
    return True


def _holds(root: Path, wanted: Mapping[str, File]) -> bool:
    found = {
        os.path.relpath(os.path.join(where, name), os.path.realpath(root))
        for where, _, names in os.walk(os.path.realpath(root))
        for name in names
    }
    return found == wanted.keys() and all((root / p).read_bytes() == f.data for p, f in wanted.items())
