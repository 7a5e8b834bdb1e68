"""Pods of one node, from the API to processes and back."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from podlane.errors import ApiError
from podlane.lab import cgroups
from podlane.lab.supervisor.client import Supervisor
from tests.netns.kubelet_site import NODE, KubeletSite, container, eventually, kubelet_site, phase, ready

Scenario = Callable[[KubeletSite], Awaitable[None]]
FOREVER = ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done"]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Scenario], None]]:
    # A socket's path may be 107 bytes long: pytest's own directories are deeper than a lab's.
    with tempfile.TemporaryDirectory(prefix="kubelet-") as where:
        directory = Path(where)
        monkeypatch.setenv("PODLANE_RUN_DIR", str(directory / "run"))
        monkeypatch.setenv("PODLANE_STATE_DIR", str(directory / "state"))

        def run(scenario: Scenario) -> None:
            async def main() -> None:
                async with kubelet_site(directory) as site:
                    await scenario(site)

            asyncio.run(main())

        yield run


def test_responder_pod_is_ready_with_addresses_of_both_families(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod("web", {"ports": [{"containerPort": 80}]})
        pod = await site.until("web", ready)
        assert [ip["ip"] for ip in pod["status"]["podIPs"]] == ["10.244.1.2", "fd00:10:244:1::2"]
        assert pod["status"]["hostIP"] == "172.30.1.11"
        assert pod["status"]["phase"] == "Running"
        assert container(pod)["started"] is True
        conditions = {c["type"]: c["status"] for c in pod["status"]["conditions"]}
        assert set(conditions.values()) == {"True"}
        status, output = await site.run("web", "curl", "-s", "http://10.244.1.2/x?y")
        answer = json.loads(output)
        assert status == 0
        assert (answer["pod"], answer["namespace"], answer["node"]) == ("web", "default", NODE)
        assert (answer["client"], answer["path"], answer["method"]) == ("10.244.1.2", "/x?y", "GET")
        node = await site.client.get("nodes", NODE)
        assert {a["address"] for a in node["status"]["addresses"]} >= {"172.30.1.11", NODE}
        assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "rack-1"

    play(scenario)


def test_names_and_credentials_inside(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod(
            "web",
            {
                "env": [
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "WHERE", "value": "$(IP):$(KUBERNETES_SERVICE_PORT)"},
                ]
            },
            hostAliases=[{"ip": "192.0.2.1", "hostnames": ["other"]}],
            subdomain="sub",
        )
        await site.until("web", ready)
        _, text = await site.run(
            "web",
            "sh",
            "-c",
            "cat /etc/resolv.conf /etc/hosts; hostname; echo $WHERE; "
            "cat /var/run/secrets/kubernetes.io/serviceaccount/*",
        )
        assert "nameserver 10.96.0.10\n" in text
        assert "search default.svc.cluster.local svc.cluster.local cluster.local\n" in text
        assert "options ndots:5\n" in text
        assert "10.244.1.2\tweb.sub.default.svc.cluster.local\tweb\n" in text
        assert "192.0.2.1\tother\n" in text
        assert "\nweb\n10.244.1.2:443\n" in text
        assert "the-authoritydefaultthe-token" in text
        status, _ = await site.run("web", "ls", str(site.paths.run))
        assert status != 0

    play(scenario)


def test_init_containers_run_in_order_and_share_volumes(play):
    async def scenario(site: KubeletSite) -> None:
        mounts = [{"name": "data", "mountPath": "/data"}, {"name": "mem", "mountPath": "/mem"}]
        await site.pod(
            "web",
            {
                "command": ["sh", "-c", "cat /data/f /mem/f; df -t tmpfs /mem | tail -1; exec sleep inf"],
                "volumeMounts": mounts,
            },
            initContainers=[
                {
                    "name": "one",
                    "image": "x",
                    "command": ["sh", "-c", "echo 1 >> /data/f; echo m > /mem/f"],
                    "volumeMounts": mounts,
                },
                {"name": "absent", "image": "x", "command": ["no-such-program"]},
                {
                    "name": "two",
                    "image": "x",
                    "command": ["sh", "-c", "echo 2 >> /data/f"],
                    "volumeMounts": mounts,
                },
            ],
            volumes=[{"name": "data", "emptyDir": {}}, {"name": "mem", "emptyDir": {"medium": "Memory"}}],
            terminationGracePeriodSeconds=0,
        )
        pod = await site.until("web", ready)
        assert container(pod, "absent")["state"]["terminated"]["exitCode"] == 0
        await site.until_event("web", "CommandNotOnHost", "no-such-program")

        async def written() -> bool:
            return "/mem" in await site.log("web")

        await eventually(written)
        text = await site.log("web")
        assert text.splitlines()[:3] == ["1", "2", "m"]

    play(scenario)


def test_failed_init_container_ends_a_pod_that_never_restarts(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod(
            "web",
            {"command": FOREVER},
            restartPolicy="Never",
            initContainers=[{"name": "i", "image": "x", "command": ["false"]}],
        )
        pod = await site.until("web", phase("Failed"))
        assert container(pod, "i")["state"]["terminated"]["exitCode"] == 1
        assert "waiting" in container(pod)["state"]

    play(scenario)


def test_restart_policies(play):
    async def scenario(site: KubeletSite) -> None:
        message = ["sh", "-c", "echo bye > /dev/termination-log; exit 3"]
        await site.pod("never", {"command": message}, restartPolicy="Never")
        await site.pod("done", {"command": ["true"]}, restartPolicy="OnFailure")
        await site.pod("crash", {"command": ["sh", "-c", "echo run; exit 1"]})
        pod = await site.until("never", phase("Failed"))
        ended = container(pod)["state"]["terminated"]
        assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "bye\n")
        pod = await site.until("done", phase("Succeeded"))
        assert container(pod)["state"]["terminated"]["reason"] == "Completed"
        pod = await site.until("crash", lambda p: container(p).get("restartCount", 0) >= 2)
        pod = await site.until("crash", lambda p: "waiting" in container(p)["state"])
        assert container(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        assert container(pod)["lastState"]["terminated"]["exitCode"] == 1
        assert pod["status"]["phase"] == "Running"
        assert await site.log("crash", previous=True) == "run\n"
        await site.until_event("crash", "BackOff")

        async def given_back() -> bool:
            """What has ended for good has no address any more."""
            return [a.pod_name for a in site.attachments()] == ["crash"]

        await eventually(given_back)

    play(scenario)


def test_readiness_follows_its_probe(play):
    async def scenario(site: KubeletSite) -> None:
        probe = {"exec": {"command": ["cat", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1}
        await site.pod("web", {"command": FOREVER, "readinessProbe": probe})
        await site.until("web", lambda p: "running" in container(p)["state"])
        assert not ready(await site.get("web"))
        await site.run("web", "touch", "/tmp/ok")
        await site.until("web", ready)
        await site.run("web", "rm", "/tmp/ok")
        pod = await site.until("web", lambda p: not ready(p))
        assert container(pod)["restartCount"] == 0
        await site.until_event("web", "Unhealthy", "Readiness probe failed: cat: /tmp/ok")

    play(scenario)


def test_liveness_and_startup_probes_restart(play):
    async def scenario(site: KubeletSite) -> None:
        bad = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
        good = {"tcpSocket": {"port": "http"}, "periodSeconds": 1}
        await site.pod("live", {"command": FOREVER, "livenessProbe": bad})
        ports = [{"containerPort": 80, "name": "http"}]
        await site.pod(
            "start",
            {
                "ports": ports,
                "startupProbe": good,
                "livenessProbe": good,
                "readinessProbe": {"httpGet": {"port": "http", "path": "/"}},
            },
        )
        await site.until("live", lambda p: container(p).get("restartCount", 0) >= 1)
        await site.until_event("live", "Killing", "failed liveness probe")
        pod = await site.until("start", ready)
        assert container(pod)["restartCount"] == 0

    play(scenario)


def test_exec_probe_without_its_program_passes_for_the_responder(play):
    async def scenario(site: KubeletSite) -> None:
        probe = {"exec": {"command": ["sh", "-c", "no-such-program ping"]}}
        await site.pod("db", {"image": "redis", "readinessProbe": probe})
        await site.until("db", ready)
        await site.until_event("db", "ProbeProgramAbsent")

    play(scenario)


def test_deletion_takes_everything_away(play):
    async def scenario(site: KubeletSite) -> None:
        hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo bye > /data/hook"]}}}
        host = site.paths.run / "kept"
        await site.pod(
            "web",
            {"command": FOREVER, "lifecycle": hook},
            {},
            {"command": ["sleep", "inf"]},
            terminationGracePeriodSeconds=1,
        )
        pod = await site.until("web", ready)
        uid = pod["metadata"]["uid"]
        begun_s = time.monotonic()
        await site.client.delete("pods", "web", "default")
        await site.until_gone("web")
        assert time.monotonic() - begun_s >= 0.9  # sleep, as process 1, does not hear SIGTERM
        assert not host.exists()
        assert not site.paths.pod_state(NODE, uid).exists()
        assert not (cgroups.lab_cgroup(site.paths.name) / NODE / "pods" / uid).exists()
        assert [p.name for p in await site.supervisor.list() if p.kind != "anchor"] == []
        await site.pod("web", {})
        pod = await site.until("web", ready)
        assert pod["status"]["podIP"] == "10.244.1.3"

    play(scenario)


def test_kubelet_that_comes_back_restarts_nothing(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod("stay", {"command": FOREVER})
        await site.pod("leave", {"command": FOREVER})
        await site.pod("end", {"command": ["sh", "-c", "sleep 0.3; exit 4"]}, restartPolicy="Never")
        for name in ("stay", "leave"):
            await site.until(name, ready)
        await site.until("end", phase("Running"))
        before = {p.pid for p in await site.supervisor.list() if p.labels.get("pod") == "stay"}
        await site.stop()
        await site.client.delete("pods", "leave", "default", grace_period_s=0)
        with Supervisor(site.paths.supervisor_socket) as supervisor:
            (end,) = [p.pid for p in supervisor.list() if p.name == "default/end/c0"]
            supervisor.wait(end)
        await site.pod("new", {})
        await site.start()
        await site.until("new", ready)
        pod = await site.until("end", phase("Failed"))
        assert container(pod)["state"]["terminated"]["exitCode"] == 4
        assert container(await site.get("stay"))["restartCount"] == 0
        assert before == {p.pid for p in await site.supervisor.list() if p.labels.get("pod") == "stay"}

        async def left() -> bool:
            return not any(p.labels.get("pod") == "leave" for p in await site.supervisor.list())

        await eventually(left)
        assert (await site.run("stay", "true"))[0] == 0

    play(scenario)


def test_pod_waits_for_its_configuration_and_follows_it(play):
    def config(value: str) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "late", "namespace": "default"},
            "data": {"key": value},
        }

    async def scenario(site: KubeletSite) -> None:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s", "namespace": "default"},
            "data": {"password": base64.b64encode(b"hush").decode()},
        }
        await site.client.create("secrets", secret, "default")
        env = [{"name": "P", "valueFrom": {"secretKeyRef": {"name": "s", "key": "password"}}}]
        await site.pod(
            "web",
            {
                "command": FOREVER,
                "envFrom": [{"configMapRef": {"name": "late"}}],
                "env": env,
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            },
            volumes=[{"name": "v", "configMap": {"name": "late"}}],
        )
        await site.until_event("web", "FailedMount", 'configmap "late" not found')
        await site.client.create("configmaps", config("one"), "default")
        await site.until("web", ready)
        assert await site.run("web", "sh", "-c", "cat /v/key; echo $key$P") == (0, "oneonehush\n")
        old = await site.client.get("configmaps", "late", "default")
        await site.client.update("configmaps", {**old, "data": {"key": "two"}})

        async def followed() -> bool:
            return await site.run("web", "cat", "/v/key") == (0, "two")

        await eventually(followed)

    play(scenario)


def test_responder_opens_the_ports_of_services(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod("web", {}, {"ports": [{"containerPort": 81}]})
        await site.until("web", ready)
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }
        await site.client.create("services", service, "default")
        fetch = ["curl", "-s", "--retry", "20", "--retry-connrefused", "--retry-delay", "0"]
        status, text = await site.run("web", *fetch, "http://localhost:8080/hostname")
        assert (status, text) == (0, "web")

    play(scenario)


def test_sidecars_run_until_the_rest_is_done(play):
    async def scenario(site: KubeletSite) -> None:
        sidecar = {"name": "proxy", "image": "x", "restartPolicy": "Always", "ports": [{"containerPort": 90}]}
        await site.pod(
            "job",
            {"command": ["curl", "-s", "http://localhost:90/hostname"]},
            restartPolicy="Never",
            initContainers=[sidecar],
        )
        pod = await site.until("job", phase("Succeeded"))
        assert await site.log("job") == "job\n" or await site.log("job") == "job"
        assert "terminated" in container(pod, "proxy")["state"]

    play(scenario)


def test_deadline_ends_a_pod(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod("web", {"command": FOREVER}, activeDeadlineSeconds=1, restartPolicy="Never")
        pod = await site.until("web", phase("Failed"))
        assert pod["status"]["reason"] == "DeadlineExceeded"

    play(scenario)


def test_host_network_pod_lives_in_the_nodes_namespace(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod("host", {"ports": [{"containerPort": 9100, "hostPort": 9100}]}, hostNetwork=True)
        pod = await site.until("host", ready)
        assert [e["ip"] for e in pod["status"]["podIPs"]] == ["172.30.1.11", "fd00:172:30::1:b"]
        _, name = await site.run("host", "readlink", "/proc/self/ns/net")
        assert name.strip() == os.readlink(f"/proc/{site.facts.pid}/ns/net")

    play(scenario)


def test_logs(play):
    async def scenario(site: KubeletSite) -> None:
        script = "for i in 1 2 3; do echo line $i; done; touch /tmp/x; " + FOREVER[2]
        await site.pod("web", {"command": ["sh", "-c", script]}, terminationGracePeriodSeconds=1)
        await site.until("web", ready)

        async def written() -> bool:
            return (await site.log("web")).count("\n") == 3

        await eventually(written)
        assert await site.log("web") == "line 1\nline 2\nline 3\n"
        assert await site.log("web", tail_lines=1) == "line 3\n"
        assert await site.log("web", limit_bytes=4) == "line"
        assert await site.log("web", since_s=3600) == "line 1\nline 2\nline 3\n"
        stamped = await site.log("web", timestamps=True)
        assert [line.split(" ", 1)[1] for line in stamped.splitlines()] == ["line 1", "line 2", "line 3"]
        with pytest.raises(ApiError, match="previous terminated container"):
            await site.log("web", previous=True)
        following = asyncio.create_task(site.log("web", follow=True))
        await site.client.delete("pods", "web", "default")
        assert await following == "line 1\nline 2\nline 3\n"

    play(scenario)


def test_exec_with_input_and_with_a_terminal(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod("web", {"command": FOREVER})
        await site.until("web", ready)
        session = await site.kubelet.exec(
            "default", "web", "c0", ["cat"], stdin=True, stdout=True, stderr=True, tty=False
        )
        await session.write(b"x" * 300_000)
        await session.close_stdin()
        size = 0
        while (chunk := await session.read()) is not None:
            size += len(chunk[1])
        assert (size, await session.wait()) == (300_000, 0)
        await session.kill()
        session = await site.kubelet.exec(
            "default",
            "web",
            "c0",
            ["sh", "-c", "read x; stty size; echo got $x; exit 7"],
            stdin=True,
            stdout=True,
            stderr=False,
            tty=True,
        )
        await session.resize(100, 30)
        await session.write(b"word\n")
        text = b""
        while (chunk := await session.read()) is not None:
            text += chunk[1]
        assert b"30 100" in text
        assert b"got word" in text
        assert await session.wait() == 7
        await session.kill()
        session = await site.kubelet.exec(
            "default", "web", "c0", ["sleep", "60"], stdin=False, stdout=True, stderr=False, tty=False
        )
        await session.kill()
        assert await session.wait() == 137
        with pytest.raises(ApiError, match="no-such-program"):
            await site.kubelet.exec(
                "default", "web", "c0", ["no-such-program"], stdin=False, stdout=True, stderr=False, tty=False
            )

    play(scenario)


def test_lost_sandbox_is_made_anew(play):
    async def scenario(site: KubeletSite) -> None:
        await site.pod("web", {"ports": [{"containerPort": 80}]})
        await site.until("web", ready)
        (pause,) = [p.pid for p in await site.supervisor.list() if p.kind == "sandbox"]
        await site.supervisor.signal(pause, 9)
        await site.until("web", lambda p: container(p).get("restartCount") == 1 and ready(p))
        assert (await site.run("web", "curl", "-s", "localhost/hostname")) == (0, "web")

    play(scenario)
