"""`tuning`: settings of an interface that an earlier plugin of the chain made. DEL puts them back.

sysctl names may use "." or "/"; IFNAME in them stands for the interface. Only those below net are
namespaced, and so only they may be set; /etc/cni/tuning/allowlist.conf, if it is there, narrows them
further (one regular expression a line).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from podlane.cni import protocol
from podlane.cni.fields import Fields
from podlane.cni.inside import check_namespace
from podlane.cni.plugins.base import Call, PluginType, gather_failures
from podlane.cni.plugins.linked import wanted_mac
from podlane.cni.protocol import Request
from podlane.cni.results import Result
from podlane.errors import CniError, KernelError
from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl, flags, links

_log = logging.getLogger(__name__)

ALLOWLIST: Final = Path("/etc/cni/tuning/allowlist.conf")
_FLAGS: Final = {"promisc": flags.IFF_PROMISC, "allmulti": flags.IFF_ALLMULTI}


class Settings(msgspec.Struct, frozen=True):
    """sysctls: path below /proc/sys -> value. flags: name -> on. Zero and "": not to be touched."""

    sysctls: dict[str, str]
    mac: str = ""
    mtu_bytes: int = 0
    flags: dict[str, bool] = {}
    queue_packets: int | None = None


def read(request: Request) -> tuple[Settings, list[str]]:
    fields = Fields(request.config)
    own = Fields(request.config.get("args") or {}).fields("cni")  # args.cni comes before the type's keys
    sysctls: dict[str, str] = {}
    for key, value in {**fields.mapping("sysctl"), **own.mapping("sysctl")}.items():
        path = _path(key, request.ifname)
        if not isinstance(value, str | int) or isinstance(value, bool):
            fields.fault(f"sysctl.{key}", f"is {value!r}, expected a string")
        elif not path.startswith("net/") or ".." in path.split("/"):
            fields.fault(f"sysctl.{key}", "is not below net, so it is not the pod's own")
        elif path in sysctls:
            fields.fault(f"sysctl.{key}", "is given twice")
        elif not _allowed(path):
            fields.fault(f"sysctl.{key}", f"is not allowed by {ALLOWLIST}")
        else:
            sysctls[path] = str(value)
    # Read with the same rules as CNI_ARGS and the capability, which come before it.
    config_mac = msgspec.structs.replace(
        request, args={"MAC": fields.text("mac")} if fields.text("mac") else {}, config={}
    )
    mac = wanted_mac(request, fields.faults) or wanted_mac(config_mac, fields.faults)
    chosen = {name: value for name in _FLAGS if (value := fields.optional(name)) is not None}
    queue = fields.integer("txQLen", 0, 2**31 - 1) if "txQLen" in fields else None
    return Settings(sysctls, mac, fields.integer("mtu", 68, 65535), chosen, queue), fields.faults


def _path(key: str, ifname: str) -> str:
    parts = key.split("/") if "/" in key else key.split(".")
    return "/".join(ifname if part == "IFNAME" else part for part in parts)


def _allowed(path: str) -> bool:
    try:
        patterns = ALLOWLIST.read_text().splitlines()
    except OSError:
        return True
    key = path.replace("/", ".")
    return any(re.search(p.strip(), key) for p in patterns if p.strip() and not p.startswith("#"))


class Tuning(PluginType):
    name = "tuning"

    def faults(self, request: Request) -> list[str]:
        return read(request)[1]

    async def add(self, call: Call) -> Result:
        settings, _ = read(call.request)
        previous, namespace, ifname = call.chained, call.namespace, call.request.ifname
        check_namespace(namespace, call.host.netns_fd)
        before = await call.host.run(lambda: _current(namespace, ifname, settings))
        if (
            call.host.records.get(self.name, call.owner) is None
        ):  # else an ADD again: what it was first counts
            call.host.records.put(self.name, call.owner, msgspec.to_builtins(before))
        try:
            await call.host.run(lambda: _apply(namespace, ifname, settings))
        except BaseException:
            await self._restore(call)
            raise
        return _tell(previous, ifname, settings)

    async def delete(self, call: Call) -> None:
        await self._restore(call)

    async def check(self, call: Call) -> None:
        settings, _ = read(call.request)
        namespace, ifname = call.namespace, call.request.ifname
        found = await call.host.run(lambda: _current(namespace, ifname, settings))
        differ = [
            f"{name} is {now}, not {wanted}" for name, wanted, now in _pairs(settings, found) if now != wanted
        ]
        if differ:
            raise CniError(protocol.NOT_AS_MADE, f"tuning of {ifname}: {'; '.join(differ)}")

    async def gc(self, call: Call) -> None:
        """The namespace of what is not valid is gone or its own affair: notes alone are left."""
        valid = set(call.request.valid_attachments or ())
        for owner, _ in call.host.records.all(self.name, call.request.network):
            if owner.key not in valid:
                call.host.records.remove(self.name, owner)

    async def _restore(self, call: Call) -> None:
        note = call.host.records.get(self.name, call.owner)
        if note is not None and call.netns_fd is not None:
            namespace, ifname = call.netns_fd, call.request.ifname
            await gather_failures([call.host.run(lambda: _put_back(namespace, ifname, note))])
        call.host.records.remove(self.name, call.owner)


def _current(namespace: int, ifname: str, wanted: Settings) -> Settings:
    """What the wanted settings are now. Raises CniError when the interface is not there."""
    with Rtnl(namespace) as pod:
        link = pod.find_link(ifname)
        if link is None:
            raise CniError(protocol.NOT_AS_MADE, f"tuning: the pod has no interface {ifname}")
        held, queue = flags.unpack(pod.ask(links.get(ifname))[0])
    sysctls = {}
    for path in wanted.sysctls:
        try:
            sysctls[path] = netns.read_sysctl(namespace, path)
        except OSError as error:
            raise CniError(protocol.INVALID_CONFIG, f"sysctl {path}: {error.strerror}") from None
    return Settings(
        sysctls,
        link.mac if wanted.mac else "",
        link.mtu_bytes if wanted.mtu_bytes else 0,
        {name: bool(held & _FLAGS[name]) for name in wanted.flags},
        queue if wanted.queue_packets is not None else None,
    )


def _apply(namespace: int, ifname: str, settings: Settings) -> None:
    with Rtnl(namespace) as pod:
        for step in _steps(namespace, pod, ifname, settings):
            step()


def _steps(namespace: int, pod: Rtnl, ifname: str, settings: Settings) -> Iterator[Callable[[], object]]:
    for path, value in settings.sysctls.items():
        yield partial(netns.write_sysctl, namespace, path, value)
    index = pod.link_index(ifname)
    if settings.mac:
        yield partial(pod.set_mac, index, settings.mac)
    if settings.mtu_bytes:
        yield partial(pod.set_mtu, index, settings.mtu_bytes)
    for name, on in settings.flags.items():
        yield partial(pod.do, flags.set_flag(index, _FLAGS[name], on, what=ifname))
    if settings.queue_packets is not None:
        yield partial(pod.do, flags.set_queue(index, settings.queue_packets, what=ifname))


def _put_back(namespace: int, ifname: str, note: Mapping[str, Any]) -> None:
    """As far as the kernel lets it (lo takes no MAC of zeros): a DEL that cannot end keeps the pod for ever.

    Where the interface is gone there is nothing to put back.
    """
    with Rtnl(namespace) as pod:
        if pod.find_link(ifname) is None:
            return
        for step in _steps(namespace, pod, ifname, msgspec.convert(note, Settings)):
            try:
                step()
            except KernelError as error:
                _log.warning("tuning of %s is not put back: %s", ifname, error)


def _pairs(wanted: Settings, found: Settings) -> list[tuple[str, Any, Any]]:
    pairs: list[tuple[str, Any, Any]] = [
        (path, " ".join(value.split()), " ".join(found.sysctls[path].split()))
        for path, value in wanted.sysctls.items()
    ]
    pairs += [("MAC", wanted.mac, found.mac), ("MTU", wanted.mtu_bytes, found.mtu_bytes)]
    pairs += [(name, on, found.flags[name]) for name, on in wanted.flags.items()]
    return [*pairs, ("txQLen", wanted.queue_packets, found.queue_packets)]


def _tell(previous: Result, ifname: str, settings: Settings) -> Result:
    """prevResult with the MAC address and MTU that the interface has now."""
    told = tuple(
        msgspec.structs.replace(i, mac=settings.mac or i.mac, mtu_bytes=settings.mtu_bytes or i.mtu_bytes)
        if i.sandbox and i.name == ifname
        else i
        for i in previous.interfaces
    )
    return msgspec.structs.replace(previous, interfaces=told)


TYPE = Tuning()
