"""The lab spoken to by kubectl and by the Kubernetes client library."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import PODLANE, Lab, kubectl_minor, until


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    import os

    made = Lab(f"tk{os.getpid()}")
    made.up(
        "--nodes", "2", "-f", "examples/web.yaml", "-f", "examples/tomcat.yaml", "-f", "examples/client.yaml"
    )
    yield made
    made.down()


def test_get_shows_nodes_pods_services_and_slices(shared: Lab) -> None:
    text = shared.kubectl("get", "pods,svc,endpointslices", "-A", "-o", "wide").stdout
    assert "service/kubernetes" in text
    assert "endpointslice.discovery.k8s.io/web-" in text
    assert "10.244." in text
    nodes = shared.kubectl("get", "nodes", "-o", "wide").stdout
    assert nodes.count(" Ready ") == 2


def test_scale_rolls_and_deletes(shared: Lab) -> None:
    shared.kubectl("create", "namespace", "roll")
    shared.kubectl("-n", "roll", "create", "deployment", "app", "--image=first", "--port=80", "--replicas=2")
    shared.kubectl("-n", "roll", "rollout", "status", "deploy/app", "--timeout=30s")
    shared.kubectl("-n", "roll", "scale", "deploy/app", "--replicas=4")
    shared.kubectl("-n", "roll", "rollout", "status", "deploy/app", "--timeout=30s")
    assert len(shared.get("-n", "roll", "pods")["items"]) == 4
    shared.kubectl("-n", "roll", "set", "image", "deploy/app", "*=second")
    shared.kubectl("-n", "roll", "rollout", "status", "deploy/app", "--timeout=30s")
    images = {
        p["spec"]["containers"][0]["image"]
        for p in shared.get("-n", "roll", "pods")["items"]
        if not p["metadata"].get("deletionTimestamp")
    }
    assert images == {"second"}
    shared.kubectl("-n", "roll", "rollout", "undo", "deploy/app")
    shared.kubectl("-n", "roll", "rollout", "status", "deploy/app", "--timeout=30s")
    shared.kubectl("delete", "namespace", "roll", "--timeout=30s")
    assert shared.kubectl("get", "namespace", "roll", check=False).returncode == 1


def test_apply_is_idempotent_and_delete_removes(shared: Lab) -> None:
    manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1'}\n"
    assert "created" in shared.kubectl("apply", "-f", "-", input=manifest).stdout
    assert "unchanged" in shared.kubectl("apply", "-f", "-", input=manifest).stdout
    assert "configured" in shared.kubectl("apply", "-f", "-", input=manifest.replace("'1'", "'2'")).stdout
    assert "deleted" in shared.kubectl("delete", "-f", "-", input=manifest).stdout


def test_kubectl_finds_nothing_to_change_in_what_was_applied(shared: Lab) -> None:
    files = [f"--filename=examples/{name}.yaml" for name in ("web", "client", "two-containers", "tomcat")]
    shared.podlane("apply", "--lab", shared.name, *files)
    told = shared.kubectl("apply", *files).stdout.splitlines()
    assert [line for line in told if not line.endswith(" unchanged")] == []
    assert len(told) >= 5


def test_logs(shared: Lab) -> None:
    talker = (
        "apiVersion: v1\nkind: Pod\nmetadata: {name: talker}\nspec: {restartPolicy: Never, containers: "
        "[{name: c, image: i, command: [sh, -c, 'for i in 1 2 3; do echo line $i; done']}]}\n"
    )
    shared.kubectl("apply", "-f", "-", input=talker)
    until(lambda: shared.get("pod", "talker")["status"]["phase"] == "Succeeded")
    assert shared.kubectl("logs", "talker").stdout == "line 1\nline 2\nline 3\n"
    assert shared.kubectl("logs", "talker", "--tail=1").stdout == "line 3\n"


@pytest.mark.skipif(kubectl_minor() < 31, reason="kubectl speaks WebSocket for exec from 1.31")
def test_exec(shared: Lab) -> None:
    assert shared.kubectl("exec", "client", "--", "hostname").stdout.strip() == "client"
    failed = shared.kubectl("exec", "client", "--", "sh", "-c", "echo no >&2; exit 7", check=False)
    assert failed.returncode == 7
    assert "no" in failed.stderr
    echoed = shared.kubectl("exec", "-i", "client", "--", "cat", input="through stdin\n")
    assert echoed.stdout == "through stdin\n"


def test_watch_sees_changes(shared: Lab) -> None:
    watch = subprocess.Popen(
        ["kubectl", "--kubeconfig", shared.kubeconfig, "get", "configmaps", "-w", "-o", "name"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(0.5)
        shared.kubectl("create", "configmap", "watched")
        assert watch.stdout is not None
        for line in watch.stdout:
            if "watched" in line:
                break
    finally:
        watch.kill()
        watch.communicate()


def test_the_python_client_lists_watches_and_execs(shared: Lab) -> None:
    from kubernetes import client, config, stream

    api = client.CoreV1Api(config.new_client_from_config(shared.kubeconfig))
    pods = api.list_namespaced_pod("default", label_selector="app=web")
    assert len(pods.items) == 2
    answer = stream.stream(
        api.connect_get_namespaced_pod_exec,
        "client",
        "default",
        command=["hostname"],
        stdout=True,
        stderr=True,
    )
    assert answer.strip() == "client"
    api.api_client.close()


@pytest.mark.filterwarnings("ignore:Kubernetes version")  # it was written for those up to 1.35, and says so
def test_kr8s_lists_and_execs(shared: Lab) -> None:
    import kr8s
    from kr8s.asyncio import objects

    async def story() -> None:
        api = await kr8s.asyncio.api(kubeconfig=shared.kubeconfig)
        pods = [o async for o in api.get("pods", namespace="default", label_selector="app=web")]
        assert len(pods) == 2
        client = await objects.Pod.get("client", namespace="default", api=api)
        assert (await client.ready()) is True
        answer = await client.exec(["hostname"])
        assert (answer.returncode, answer.stdout.strip()) == (0, b"client")
        lines = [line async for line in pods[0].logs()]
        assert isinstance(lines, list)
        await asyncio.sleep(0.1)  # its connections say goodbye

    asyncio.run(story())


def test_a_service_reaches_every_pod_and_the_node_port_answers_outside(shared: Lab) -> None:
    address = shared.get("service", "web")["spec"]["clusterIP"]
    names = {
        shared.exec("client", "curl", "-s", "-m2", f"http://{address}/hostname").stdout for _ in range(40)
    }
    assert names == {p["metadata"]["name"] for p in shared.get("pods", "-l", "app=web")["items"]}
    port = next(p["nodePort"] for p in shared.get("service", "tomcat")["spec"]["ports"])
    for node in shared.get("nodes")["items"]:
        where = next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")
        answer = json.loads(shared.outside("curl", "-s", "-m2", f"http://{where}:{port}/x").stdout)
        assert answer["path"] == "/x"
        assert answer["pod"].startswith("tomcat")


def test_a_pod_reaches_the_api_by_its_service(shared: Lab) -> None:
    script = (
        "cd /var/run/secrets/kubernetes.io/serviceaccount; T=$(cat token); "
        'curl -s -m3 --cacert ca.crt -H "Authorization: Bearer $T" '
        "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/default/pods/client"
    )
    answer = json.loads(shared.exec("client", "sh", "-c", script).stdout)
    assert answer["metadata"]["name"] == "client"


def test_a_rejected_object_changes_nothing_and_the_lab_goes_on(shared: Lab) -> None:
    bad = "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 70000}]}\n"
    refused = shared.podlane("apply", "--lab", shared.name, "-f", "-", input=bad, check=False)
    assert refused.returncode == 2
    assert "spec.ports[0].port" in refused.stderr
    assert "bad" in refused.stderr
    assert shared.kubectl("get", "service", "bad", check=False).returncode == 1
    shared.check()


def test_commands_in_pods_and_nodes_end_as_a_shell_would_tell(shared: Lab) -> None:
    for run_in in (
        lambda *argv: shared.exec("client", *argv, check=False),
        lambda *argv: shared.node("node-1", *argv, check=False),
        lambda *argv: shared.outside(*argv, check=False),
    ):
        assert run_in("sh", "-c", "exit 42").returncode == 42
        absent = run_in("no-such-program")
        assert absent.returncode == 127
        assert "no-such-program: No such file or directory" in absent.stderr
        assert absent.stderr.count("\n") == 1
        refused = run_in("/etc")
        assert refused.returncode != 0
        assert refused.stderr == "podlane: /etc: Permission denied\n"


LOAD = """
import http.client, sys, time
done, failed, until_s = 0, [], time.time() + 6
while time.time() < until_s:
    connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=5)
    try:
        connection.request("GET", "/hostname")
        done += connection.getresponse().status == 200
    except (OSError, http.client.HTTPException) as error:
        failed.append(repr(error))
    connection.close()
    time.sleep(0.002)
print(done, failed)
"""


def test_no_request_fails_while_a_deployment_rolls(shared: Lab) -> None:
    shared.kubectl("create", "deployment", "rolling", "--image=v1", "--port=80", "--replicas=3")
    shared.kubectl("expose", "deployment", "rolling", "--port=80")
    shared.kubectl("rollout", "status", "deploy/rolling", "--timeout=30s")
    address = shared.get("service", "rolling")["spec"]["clusterIP"]
    load = subprocess.Popen(
        [PODLANE, "exec", "--lab", shared.name, "client", "--", "python3", "-c", LOAD, address],
        stdout=subprocess.PIPE,
        text=True,
    )
    for image in ("v2", "v3", "v4"):
        shared.kubectl("set", "image", "deploy/rolling", f"*={image}")
        shared.kubectl("rollout", "status", "deploy/rolling", "--timeout=30s")
    shared.kubectl("scale", "deploy/rolling", "--replicas=1")
    done, _, failed = load.communicate(timeout=60)[0].partition(" ")
    assert (int(done) > 100, failed) == (True, "[]\n")
    shared.kubectl("delete", "deploy,svc", "rolling")
