from __future__ import annotations

from typing import Any

from podlane.lab.kubelet import container_spec
from podlane.lab.runtime import capabilities, pause
from podlane.lab.runtime.responder import Port


def pod(*containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    filled = [{"name": f"c{i}", **c} for i, c in enumerate(containers)]
    return {
        "metadata": {"name": "p", "namespace": "d", "uid": "u"},
        "spec": {"containers": filled, **spec},
    }


def service(*ports: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"ports": list(ports)}}


def ports(made: dict[str, Any], index: int, *services: dict[str, Any]) -> list[Port]:
    container = made["spec"]["containers"][index]
    return container_spec.responder_config(made, container, "node-1", services).ports


def test_ports_of_a_responder():
    probe = {"httpGet": {"port": "http"}}
    made = pod(
        {
            "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 53, "protocol": "UDP"}],
            "readinessProbe": probe,
            "livenessProbe": {"tcpSocket": {"port": 9000}},
        }
    )
    assert ports(made, 0) == [Port(80), Port(53, "UDP"), Port(9000)]


def test_target_ports_go_to_the_first_container_unless_declared():
    made = pod({}, {"ports": [{"containerPort": 81, "name": "admin"}]})
    selecting = service(
        {"port": 80, "targetPort": 8080},
        {"port": 81},
        {"port": 1, "targetPort": "admin"},
        {"port": 70, "protocol": "UDP"},
    )
    assert ports(made, 0, selecting) == [Port(8080, required=False), Port(70, "UDP", required=False)]
    assert ports(made, 1, selecting) == [Port(81)]


def test_target_ports_are_not_for_a_command_when_a_responder_is_there():
    made = pod({"command": ["sh"]}, {})
    assert ports(made, 0, service({"port": 80})) == []
    assert ports(made, 1, service({"port": 80})) == [Port(80, required=False)]


def test_users():
    assert container_spec.user(pod(), {}) == (0, 0, [])
    made = pod(securityContext={"runAsUser": 1, "runAsGroup": 2, "fsGroup": 3, "supplementalGroups": [4]})
    assert container_spec.user(made, {}) == (1, 2, [4, 3])
    assert container_spec.user(made, {"securityContext": {"runAsUser": 9}}) == (9, 2, [4, 3])
    made = pod(securityContext={"runAsNonRoot": True})
    assert container_spec.user(made, {})[0] == container_spec.NONROOT_UID


def test_command_lines():
    given = {"command": ["$(A)", "x"], "args": ["$$(A)"]}
    assert container_spec.command_line(given, {"A": "sh"}) == (["sh", "x", "$(A)"], True)
    assert container_spec.command_line({"args": ["y"]}, {}) == (["y"], False)


def test_kinds():
    made = pod({}, initContainers=[{"name": "i"}, {"name": "s", "restartPolicy": "Always"}])
    kinds = [container_spec.kind_of(made, {"name": name}) for name in ("i", "s", "c0", "debug")]
    assert kinds == ["init", "sidecar", "main", "ephemeral"]


def test_capabilities():
    assert "NET_RAW" in capabilities.left((), ())
    assert "NET_ADMIN" in capabilities.left(["CAP_NET_ADMIN"], ())
    assert capabilities.left(["NET_BIND_SERVICE"], ["ALL"]) == ["NET_BIND_SERVICE"]
    assert capabilities.left((), ["all"]) == []
    assert "CHOWN" not in capabilities.left((), ["CHOWN"])
    everything = capabilities.NUMBERS.keys() - capabilities.HOST_WIDE
    assert set(capabilities.left(["ALL"], ["NET_RAW"])) == everything - {"NET_RAW"}
    assert capabilities.left(["MKNOD", "cap_sys_time"], ["ALL"]) == []
    assert capabilities.refused(["NET_ADMIN", "cap_sys_time"]) == ["SYS_TIME"]


def test_pause_is_an_executable_of_one_page():
    for machine in ("x86_64", "aarch64"):
        program = pause.program(machine)
        assert program.startswith(b"\x7fELF")
        assert len(program) < 256
