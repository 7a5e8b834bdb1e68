"""`podlane controller` as a process, against an API server over TLS."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from podlane.controller.client import Event, Listed, Obj
from podlane.controller.remote import HttpClient, path, slim
from podlane.errors import NotFoundError
from podlane.model import pools
from podlane.watch import kubeconfig
from podlane.watch.http import ApiHttp
from tests.unit.api_lab import Lab, running
from tests.unit.test_pool_controller import balancer

PODLANE = Path(sys.executable).with_name("podlane")
POOL = {
    "apiVersion": "podlane.dev/v1alpha1",
    "kind": "LoadBalancerPool",
    "metadata": {"name": "public"},
    "spec": {"addresses": ["192.0.2.10-192.0.2.19"]},
}


def until(what: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + 30
    while not (found := what()):
        assert time.monotonic() < end_s, "it did not come to be"
        time.sleep(0.02)
    return found


class Controller:
    def __init__(self, lab: Lab, where: Path, config: Obj) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [str(PODLANE), "controller", "--kubeconfig", str(lab.kubeconfig), "--lease-duration", "2"]
        command += ["--metrics-address", f"127.0.0.1:{self.port}"]
        settings = where / f"controller-{self.port}.json"
        settings.write_text(json.dumps(config))
        command += ["--config", str(settings)]
        with (where / f"controller-{self.port}.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def get(self, page: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{page}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def leads(self) -> bool:
        return self.get("/readyz") == (200, "ok: this one leads\n")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def controllers(lab: Lab, where: Path, count: int, config: Obj | None = None) -> Iterator[list[Controller]]:
    made = [Controller(lab, where, config or {}) for _ in range(count)]
    try:
        yield made
    finally:
        for each in made:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()


def ingress(lab: Lab, name: str) -> list[Obj]:
    record = lab.server.store.get("services", "default", name)
    assert record is not None
    found: list[Obj] = record.obj["status"]["loadBalancer"].get("ingress") or []
    return found


def create(lab: Lab, resource: str, obj: Obj, namespace: str = "default") -> None:
    lab.run(lambda: lab.server.client.create(resource, obj, namespace))


def test_one_leads_and_the_other_takes_over(tmp_path: Path) -> None:
    with running(tmp_path) as lab, controllers(lab, tmp_path, 2) as both:
        create(lab, pools.RESOURCE, POOL, "")
        create(lab, "services", balancer("web"))
        assert until(lambda: ingress(lab, "web")) == [{"ip": "192.0.2.10", "ipMode": "VIP"}]
        leader = until(lambda: next((c for c in both if c.leads), None))
        other = next(c for c in both if c is not leader)
        assert until(lambda: other.get("/readyz")[0] == 200)
        assert leader.get("/healthz") == (200, "ok\n")
        samples = leader.get("/metrics")[1]
        assert 'podlane_controller_pool_addresses_assigned{pool="public",family="IPv4"} 1' in samples
        assert "podlane_controller_leading 1" in samples
        assert "podlane_controller_leading 0" in other.get("/metrics")[1]
        leader.stop(signal.SIGKILL)
        create(lab, "services", balancer("next"))
        assert until(lambda: ingress(lab, "next")) == [{"ip": "192.0.2.11", "ipMode": "VIP"}]
        assert other.leads
        assert ingress(lab, "web") == [{"ip": "192.0.2.10", "ipMode": "VIP"}]
        # An orderly end gives the lease back.
        assert other.stop() == 0
        lease = lab.server.store.get("leases.coordination.k8s.io", "kube-system", "podlane-controller")
        assert lease is not None
        assert lease.obj["spec"]["holderIdentity"] == ""


def objects(lab: Lab, resource: str) -> list[Obj]:
    return [record.obj for record in lab.server.store.records(resource, "")]


def test_a_leader_that_is_stopped_and_goes_on_writes_nothing(tmp_path: Path) -> None:
    """Meanwhile another has led: Nodes have their prefixes, and Services their addresses, once."""
    config = {"controller": {"allocateNodeCIDRs": True}}
    with running(tmp_path) as lab, controllers(lab, tmp_path, 2, config) as both:
        create(lab, pools.RESOURCE, POOL, "")
        leader = until(lambda: next((each for each in both if each.leads), None))
        other = both[1 - both.index(leader)]
        leader.process.send_signal(signal.SIGSTOP)
        # What it will find when it goes on: watch events and answers that waited for it.
        for number in range(5):
            create(lab, "nodes", {"metadata": {"name": f"n{number}"}}, "")
            create(lab, "services", balancer(f"s{number}"))
        until(lambda: other.leads and all(n.get("spec", {}).get("podCIDRs") for n in objects(lab, "nodes")))
        until(lambda: all(ingress(lab, f"s{number}") for number in range(5)))
        until(lambda: (objects(lab, pools.RESOURCE)[0].get("status") or {}).get("assignedIPv4") == 5)
        time.sleep(1.2)  # events are written a moment later
        kinds = ("nodes", "services", pools.RESOURCE, "events")
        before = {kind: objects(lab, kind) for kind in kinds}
        leader.process.send_signal(signal.SIGCONT)
        until(lambda: "leads" in leader.get("/readyz")[1] and not leader.leads)
        time.sleep(0.5)
        assert {kind: objects(lab, kind) for kind in kinds} == before
        assert other.leads
        assert len({n["spec"]["podCIDR"] for n in before["nodes"]}) == 5
        assert 'podlane_controller_node_cidrs_assigned{family="IPv6"} 5' in other.get("/metrics")[1]


def test_everything_that_was_left_in_objects_is_taken_back(tmp_path: Path) -> None:
    """And what users and others wrote stays."""

    def of(kind: str, name: str) -> Obj:
        return next(obj for obj in objects(lab, kind) if obj["metadata"]["name"] == name)

    wish = {pools.WANTED_ADDRESSES: "192.0.2.12", "example.com/mine": "yes"}
    ours = {"podlane.dev/underlay": "{}", "podlane.dev/agent": "{}", "podlane.dev/bgp-as-number": "65001"}
    told = {"type": "podlane.dev/AnnouncedIPv4", "status": "True", "reason": "Layer2", "message": "n answers"}
    told["lastTransitionTime"] = "2026-01-01T00:00:00Z"
    kubelets = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "fine"}
    up = {"type": "NetworkUnavailable", "status": "False", "reason": "PodlaneIsUp", "message": ""}
    degraded = {"type": "podlane.dev/Degraded", "status": "False", "reason": "x", "message": ""}
    with running(tmp_path) as lab:
        create(lab, pools.RESOURCE, POOL, "")
        create(lab, "services", balancer("web", wish))
        create(lab, "services", balancer("theirs", loadBalancerClass="example.com/lb"))
        create(lab, "nodes", {"metadata": {"name": "n", "annotations": ours}}, "")
        with controllers(lab, tmp_path, 1) as (leader,):
            until(lambda: ingress(lab, "web"))
            assert leader.stop() == 0
        client = lab.server.client
        conditions = {"status": {"conditions": [kubelets, up, degraded]}}
        lab.run(lambda: client.patch("nodes", "n", "", conditions, subresource="status"))
        said = {"status": {"conditions": [told, {**told, "type": "example.com/Theirs"}]}}
        lab.run(lambda: client.patch("services", "web", "default", said, subresource="status"))
        theirs = of("services", "theirs")
        command = [PODLANE, "controller", "--release", "--kubeconfig", lab.kubeconfig]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines = ["service default/web", "node n", "lease kube-system/podlane-controller"]
        assert done.stdout.splitlines() == [f"released: {each}" for each in lines]
        web, node = of("services", "web"), of("nodes", "n")
        assert web["metadata"]["annotations"] == wish
        assert not web["metadata"].get("finalizers")
        assert not ingress(lab, "web")
        assert [c["type"] for c in web["status"]["conditions"]] == ["example.com/Theirs"]
        assert node["metadata"]["annotations"] == {"podlane.dev/bgp-as-number": "65001"}
        assert node["status"]["conditions"] == [kubelets]
        assert of("services", "theirs") == theirs
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "", (
            "once is enough"
        )
        lab.run(lambda: client.delete("services", "web", "default"))
        assert "web" not in [each["metadata"]["name"] for each in objects(lab, "services")]


def test_what_it_is_told_wrongly() -> None:
    def refused(*words: str) -> str:
        done = subprocess.run([PODLANE, "controller", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    assert "no-such-file" in refused("--kubeconfig", "no-such-file")
    assert "lease-duration" in refused("--lease-duration", "0")


def test_what_nobody_reads_is_not_kept() -> None:
    node = {
        "metadata": {"name": "n", "managedFields": [{"manager": "kubelet"}], "labels": {"a": "b"}},
        "status": {"images": [{"names": ["x"]}], "conditions": [{"type": "Ready"}]},
    }
    kept = {"metadata": {"name": "n", "labels": {"a": "b"}}, "status": {"conditions": [{"type": "Ready"}]}}
    assert slim(node) == kept
    assert "images" in node["status"]
    assert slim(kept) is kept


def test_the_client_lists_in_pages_and_watches_on(tmp_path: Path) -> None:
    with running(tmp_path) as lab:
        access = kubeconfig.load(lab.kubeconfig)

        async def story() -> None:
            client = HttpClient(ApiHttp(access))
            listed, _ = await client.list("services")
            assert [(s["apiVersion"], s["kind"], s["metadata"]["name"]) for s in listed] == [
                ("v1", "Service", "kubernetes")
            ]
            made = await client.create("services", balancer("web"), "default")
            patched = await client.patch("services", "web", "default", {"metadata": {"labels": {"a": "b"}}})
            assert patched["metadata"]["labels"] == {"a": "b"}
            seen: list[Listed | Event] = []
            following = asyncio.create_task(client.follow("services", seen.append))
            while not seen:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]}}
            await client.update("services", {**patched, "status": status}, subresource="status")
            await client.delete("services", "web", "default", uid=made["metadata"]["uid"])
            while len(seen) < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            following.cancel()
            first, changed, gone = seen
            assert isinstance(first, Listed)
            assert {(s["kind"], s["metadata"]["name"]) for s in first.objects} == {
                ("Service", "kubernetes"),
                ("Service", "web"),
            }
            assert isinstance(changed, Event)
            assert changed.object["status"] == status
            assert isinstance(gone, Event)
            assert (gone.type, gone.object["metadata"]["name"]) == ("DELETED", "web")
            with pytest.raises(NotFoundError):
                await client.get("services", "web", "default")

        asyncio.run(story())
    assert path("services", "a/b", "c d", "status") == "/api/v1/namespaces/a%2Fb/services/c%20d/status"
