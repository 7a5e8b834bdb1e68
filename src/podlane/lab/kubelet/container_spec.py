"""From a pod's words to what the supervisor is asked to run. Pure.

Names of the API appear as they are: `pod` and `container` are its objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from podlane.lab.runtime import capabilities, env
from podlane.lab.runtime.conversation import Identity
from podlane.lab.runtime.responder import Config, Port
from podlane.lab.supervisor.protocol import ContainerSpec, Mount

Obj = dict[str, Any]

NONROOT_UID = 65532  # where runAsNonRoot is asked for and the image, which is not here, would name a user
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

LABEL_NODE = "node"
LABEL_NAMESPACE = "namespace"
LABEL_POD = "pod"
LABEL_UID = "uid"
LABEL_CONTAINER = "container"
LABEL_RESTART = "restart"
LABEL_KIND = "kind"  # init, sidecar, main or ephemeral
LABEL_INDEX = "index"  # of the container in the pod's spec


def kind_of(pod: Obj, container: Obj) -> str:
    """init, sidecar (an init container that is restarted always), main or ephemeral."""
    name = container["name"]
    for one in pod["spec"].get("initContainers") or ():
        if one["name"] == name:
            return "sidecar" if one.get("restartPolicy") == "Always" else "init"
    return "main" if any(c["name"] == name for c in pod["spec"].get("containers") or ()) else "ephemeral"


def labels(pod: Obj, node: str, container: str = "", restart: int = 0, kind: str = "") -> dict[str, str]:
    """By which a process is found again. A sandbox has no container."""
    meta = pod["metadata"]
    found = {
        LABEL_NODE: node,
        LABEL_NAMESPACE: meta["namespace"],
        LABEL_POD: meta["name"],
        LABEL_UID: meta["uid"],
    }
    if container:
        names = [c["name"] for c in env.containers(pod)]
        found |= {LABEL_CONTAINER: container, LABEL_RESTART: str(restart), LABEL_KIND: kind}
        found[LABEL_INDEX] = str(names.index(container))
    return found


def command_line(container: Obj, variables: Mapping[str, str]) -> tuple[list[str], bool]:
    """(argv, whether `command` was given). Without a command args are tried: images of shells and tools
    have no entry point, and whatever the host cannot run becomes the responder."""
    command = [env.expand(word, variables) for word in container.get("command") or ()]
    arguments = [env.expand(word, variables) for word in container.get("args") or ()]
    return command + arguments, bool(command)


def user(pod: Obj, container: Obj) -> tuple[int, int, list[int]]:
    """(uid, gid, supplementary groups)"""
    of_pod = pod["spec"].get("securityContext") or {}
    own = container.get("securityContext") or {}
    merged = {**of_pod, **own}
    uid = merged.get("runAsUser")
    if uid is None:
        uid = NONROOT_UID if merged.get("runAsNonRoot") else 0
    gid = merged.get("runAsGroup")
    groups = list(of_pod.get("supplementalGroups") or ())
    if of_pod.get("fsGroup") is not None:
        groups.append(of_pod["fsGroup"])
    return int(uid), int(gid if gid is not None else 0), [int(g) for g in groups]


def container_spec(
    pod: Obj,
    container: Obj,
    *,
    node: str,
    restart: int,
    sandbox_pid: int,
    cgroup: str,
    log: str,
    responder: str,
    variables: Mapping[str, str],
    hostname: str,
    mounts: list[Mount],
    hidden: list[str],
) -> ContainerSpec:
    """responder: path of its configuration. variables: the whole environment."""
    kind = kind_of(pod, container)
    argv, _ = command_line(container, variables)
    uid, gid, groups = user(pod, container)
    context = container.get("securityContext") or {}
    asked = context.get("capabilities") or {}
    privileged = bool(context.get("privileged"))
    values = {"HOME": "/root" if uid == 0 else "/", **variables}
    if container.get("tty"):
        values.setdefault("TERM", "xterm")
    # An init container must end for the pod to go on: one whose program is not here has nothing to do.
    otherwise = "nothing" if kind == "init" else "responder"
    meta = pod["metadata"]
    return ContainerSpec(
        name=f"{meta['namespace']}/{meta['name']}/{container['name']}",
        labels=labels(pod, node, container["name"], restart, kind),
        sandbox_pid=sandbox_pid,
        cgroup=cgroup,
        log=log,
        argv=argv or (["podlane-no-command"] if kind == "init" else []),
        otherwise=otherwise,
        responder=responder,
        env=values,
        cwd=container.get("workingDir") or "",
        hostname=hostname,
        uid=uid,
        gid=gid,
        groups=groups,
        capabilities=capabilities.left(
            ["ALL"] if privileged else asked.get("add") or (), () if privileged else asked.get("drop") or ()
        ),
        privileged=privileged,
        no_new_privs=context.get("allowPrivilegeEscalation") is False,
        read_only_root=bool(context.get("readOnlyRootFilesystem")),
        mounts=mounts,
        hidden=hidden,
        share_pid=bool(pod["spec"].get("shareProcessNamespace")),
        stdin=bool(container.get("stdin")),
        tty=bool(container.get("tty")),
    )


def remarks(container: Obj, ran: str, argv: list[str]) -> Iterator[tuple[str, str, bool]]:
    """What the user should know of how it was started: (reason, message, whether it is a warning)."""
    name = container["name"]
    asked = (container.get("securityContext") or {}).get("capabilities") or {}
    if refused := capabilities.refused(asked.get("add") or ()):
        why = "no container of a lab gets them, the whole machine would be concerned"
        yield "CapabilityRefused", f"{name}: {', '.join(refused)}: {why}", True
    if ran == "responder" and container.get("command"):
        text = f"{argv[0]} is not on this machine: the built-in responder stands in for {name}"
        yield "CommandNotOnHost", text, False
    elif ran == "nothing":
        what = argv[0] if container.get("command") else "its image's program"
        yield "CommandNotOnHost", f"{what} is not on this machine: {name} counts as having succeeded", False


# --- the responder's ports ------------------------------------------------------------------------


def responder_config(pod: Obj, container: Obj, node: str, services: Iterable[Obj]) -> Config:
    """services: those whose selector chooses the pod."""
    meta = pod["metadata"]
    ports = {(p.protocol, p.port): p for p in _service_ports(pod, container, services)}
    ports |= {(p.protocol, p.port): p for p in _own_ports(container)}
    return Config(Identity(meta["name"], meta["namespace"], node), list(ports.values()))


def _own_ports(container: Obj) -> Iterator[Port]:
    for port in container.get("ports") or ():
        yield Port(int(port["containerPort"]), port.get("protocol") or "TCP")
    for name in PROBES:
        if (number := probe_port(container.get(name) or {}, container)) is not None:
            yield Port(number, "TCP")


def probe_port(probe: Obj, container: Obj) -> int | None:
    """The port a probe or hook asks, by number or by name; None when it asks none, or an unknown name."""
    for kind in ("httpGet", "tcpSocket", "grpc"):
        if (action := probe.get(kind)) is not None:
            return port_number(action.get("port"), container)
    return None


def port_number(port: Any, container: Obj) -> int | None:
    if isinstance(port, int):
        return port
    text = str(port or "")
    if text.isdecimal():
        return int(text)
    for declared in container.get("ports") or ():
        if declared.get("name") == text:
            return int(declared["containerPort"])
    return None


def _service_ports(pod: Obj, container: Obj, services: Iterable[Obj]) -> Iterator[Port]:
    """targetPorts nobody declares go to the pod's first container: it is the one a manifest is about.

    They are wishes: a command in another container may hold such a port.
    """
    everyone = pod["spec"].get("containers") or []
    declared = {
        (p.get("protocol") or "TCP", int(p["containerPort"])) for c in everyone for p in c.get("ports") or ()
    }
    first = next((c for c in everyone if not c.get("command")), None) or (everyone[0] if everyone else None)
    if first is None or first["name"] != container["name"]:
        return
    for service in services:
        for port in service["spec"].get("ports") or ():
            target = port.get("targetPort", port["port"])
            protocol = port.get("protocol") or "TCP"
            text = str(target)
            if not text.isdecimal() or (protocol, int(text)) in declared:
                continue  # a name stands for a declared port, which is open already
            yield Port(int(text), protocol, required=False)
