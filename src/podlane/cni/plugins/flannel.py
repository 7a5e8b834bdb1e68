"""`flannel`: the network of a node as flanneld's subnet.env says, made by another type (`bridge` by default).

The configuration handed on is kept in dataDir/<container id>, as the reference plugin keeps it: DEL uses
what ADD used, even when subnet.env has changed meanwhile.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
from pathlib import Path
from typing import Any, Final

from podlane.cni import protocol
from podlane.cni.fields import Fields
from podlane.cni.plugins.base import Call, PluginType
from podlane.cni.protocol import Request, Verb
from podlane.cni.results import Result
from podlane.errors import CniError

SUBNET_FILE: Final = "/run/flannel/subnet.env"
DATA_DIR: Final = "/var/lib/cni/flannel"


def read(request: Request) -> tuple[Path, Path, dict[str, Any], list[str]]:
    """(subnet.env, data directory, delegate, faults)"""
    fields = Fields(request.config)
    delegate = fields.mapping("delegate")
    for key, why in (("name", "it is the network's"), ("ipam", "it follows from subnet.env")):
        if key in delegate:
            fields.fault(f"delegate.{key}", f"must be left out: {why}")
    Fields(delegate, "delegate.", fields.faults).text("type")
    if delegate.get("type") == "flannel":
        fields.fault("delegate.type", "is flannel itself; leave it out for bridge")
    subnet_file = Path(fields.text("subnetFile") or SUBNET_FILE)
    return subnet_file, Path(fields.text("dataDir") or DATA_DIR), delegate, fields.faults


def parse(text: str, where: str) -> dict[str, str]:
    """FLANNEL_* of subnet.env. Raises CniError (try again later) when something needed is not there."""
    found = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
    if not ({"FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"} & found.keys()) or "FLANNEL_MTU" not in found:
        what = f"{where} has no FLANNEL_SUBNET or FLANNEL_IPV6_SUBNET, or no FLANNEL_MTU"
        raise CniError(protocol.TRY_AGAIN_LATER, what, "is flanneld running?")
    return found


def render(request: Request, delegate: dict[str, Any], env: dict[str, str], where: str) -> dict[str, Any]:
    """The configuration of the type that makes the network. Raises CniError."""
    try:
        subnets = [
            str(ipaddress.ip_interface(env[key]).network)
            for key in ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")
            if env.get(key)
        ]
        networks = [
            str(ipaddress.ip_network(part.strip()))
            for key in ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
            for part in env.get(key, "").split(",")
            if part.strip()
        ]
        mtu_bytes = int(env["FLANNEL_MTU"])
    except ValueError as error:
        raise CniError(protocol.TRY_AGAIN_LATER, f"{where}: {error}") from None
    config = dict(delegate)
    config.setdefault("type", "bridge")
    config.setdefault("mtu", mtu_bytes)
    # What flanneld does not masquerade is for us to do.
    config.setdefault("ipMasq", env.get("FLANNEL_IPMASQ") != "true")
    if config["type"] == "bridge":
        config.setdefault("isGateway", True)
    own = request.config.get("ipam")
    ipam = dict(own) if isinstance(own, dict) else {}
    extra = ipam.get("routes")
    routes = [{"dst": network} for network in networks] + (extra if isinstance(extra, list) else [])
    ipam |= {"type": "host-local", "ranges": [[{"subnet": subnet}] for subnet in subnets], "routes": routes}
    config |= {"name": request.network, "cniVersion": request.version, "ipam": ipam}
    for key in ("runtimeConfig", "args", "cni.dev/valid-attachments"):
        if key in request.config:
            config.setdefault(key, request.config[key])
    return config


class Flannel(PluginType):
    name = "flannel"

    def faults(self, request: Request) -> list[str]:
        return read(request)[3]

    async def add(self, call: Call) -> Result:
        config = await call.host.run(lambda: _rendered(call))
        path = self._path(call)
        await call.host.run(lambda: _save(path, config))
        try:
            return await call.host.delegate(config["type"], call, Verb.ADD, config)
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    async def delete(self, call: Call) -> None:
        path = self._path(call)
        try:
            config = json.loads(await call.host.run(path.read_bytes))
            kind = str(config["type"])
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            return
        await call.host.delegate(kind, call, Verb.DEL, config)
        path.unlink(missing_ok=True)

    async def check(self, call: Call) -> None:
        config = await call.host.run(lambda: _rendered(call))
        config["prevResult"] = call.request.previous
        await call.host.delegate(config["type"], call, Verb.CHECK, config)

    async def gc(self, call: Call) -> None:
        config = await call.host.run(lambda: _rendered(call))
        await call.host.delegate(config["type"], call, Verb.GC, config)
        valid = {container_id for container_id, _ in call.request.valid_attachments or ()}
        await call.host.run(lambda: _forget(self._path(call).parent, call.request.network, valid))

    async def status(self, call: Call) -> None:
        try:
            config = await call.host.run(lambda: _rendered(call))
        except CniError as error:
            raise CniError(protocol.NOT_AVAILABLE, error.message, error.details) from None
        await call.host.delegate(config["type"], call, Verb.STATUS, config)

    def _path(self, call: Call) -> Path:
        return read(call.request)[1] / (call.request.container_id or "-")


def _rendered(call: Call) -> dict[str, Any]:
    subnet_file, _, delegate, _ = read(call.request)
    try:
        text = subnet_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        what = f"subnet file {subnet_file}: {getattr(error, 'strerror', None) or error}"
        raise CniError(protocol.TRY_AGAIN_LATER, what, "is flanneld running?") from None
    return render(call.request, delegate, parse(text, str(subnet_file)), str(subnet_file))


def _save(path: Path, config: dict[str, Any]) -> None:
    """Whole or not at all, and on disk before anything is made by it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump(config, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _forget(directory: Path, network: str, valid: set[str]) -> None:
    for path in directory.iterdir() if directory.is_dir() else ():
        if path.name in valid or path.name.startswith("."):
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if json.loads(path.read_bytes()).get("name") == network:
                path.unlink()


TYPE = Flannel()
