"""Who may do what at the lab's API, and that the daemons' rights are enough and no more."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from podlane.controller import rights
from podlane.controller.daemon import ControllerOptions, Daemon
from podlane.controller.meta import condition
from podlane.controller.node_claims import MISCONFIGURED
from podlane.controller.remote import HttpClient
from podlane.errors import ApiError
from podlane.lab.api import accounts, rbac
from podlane.lab.api.rbac import Attributes
from podlane.model.config import parse
from podlane.watch import kubeconfig
from podlane.watch.http import ApiHttp
from podlane.watch.kubeconfig import Access
from tests.unit import api_lab
from tests.unit.api_lab import Lab, running

Obj = dict[str, Any]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("api")) as found:
        yield found


def access(lab: Lab, name: str, namespace: str = rights.NAMESPACE, **more: Any) -> Access:
    """As a service account. more: of accounts.sign."""
    own = kubeconfig.parse([lab.kubeconfig])
    more = {"expires_s": time.time() + 600, **more}
    token = accounts.sign(lab.pki.token, namespace, name, **more)
    return Access(own.server, ca_pem=own.ca_pem, token=token)


def ask(where: Access, work: Callable[[ApiHttp], Any]) -> Any:
    async def run() -> Any:
        async with ApiHttp(where) as http:
            return await work(http)

    return asyncio.run(run())


def refused(where: Access, work: Callable[[ApiHttp], Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        ask(where, work)
    return caught.value


def rule(resources: str, verbs: str, group: str = "", **more: Any) -> Obj:
    return {"apiGroups": [group], "resources": resources.split(), "verbs": verbs.split(), **more}


RULE_CASES = [
    (rule("pods", "get"), ["get pods"], ["list pods", "get pods/log"]),
    (rule("*", "*", "*"), ["get secrets", "patch nodes/status"], ["get /metrics"]),
    (rule("*/status", "patch"), ["patch nodes/status"], ["patch nodes"]),
    (
        rule("nodes", "get create", resourceNames=["n1"]),
        ["get nodes n1"],
        ["get nodes n2", "create nodes"],
    ),
    (
        {"nonResourceURLs": ["/metrics", "/logs/*"], "verbs": ["get"]},
        ["get /metrics", "get /logs/a"],
        ["get /log", "post /metrics"],
    ),
    (rule("pods", "get", "apps"), [], ["get pods"]),
]


def attributes(text: str) -> Attributes:
    verb, what, *name = text.split()
    if what.startswith("/"):
        return Attributes(verb=verb, path=what)
    resource, _, subresource = what.partition("/")
    return Attributes(verb=verb, resource=resource, subresource=subresource, name="".join(name))


@pytest.mark.parametrize(("rule", "allowed", "denied"), RULE_CASES)
def test_a_rule_allows_what_it_says(rule: Obj, allowed: list[str], denied: list[str]) -> None:
    assert [text for text in allowed if not rbac.allows(rule, attributes(text))] == []
    assert [text for text in denied if rbac.allows(rule, attributes(text))] == []


def test_rights_come_from_bindings_and_go_with_them(lab: Lab) -> None:
    registry = lab.server.registry

    async def make(resource: str, **obj: Any) -> None:
        api_lab.make(registry, resource, obj)

    def at_once(resource: str, **obj: Any) -> None:
        lab.run(lambda: make(resource, **obj))

    at_once("serviceaccounts", metadata={"name": "robot"})
    robot = access(lab, "robot", "default")
    answer = refused(robot, lambda http: http.get("/api/v1/namespaces/default/pods", {}))
    assert (answer.code, answer.reason) == (403, "Forbidden")
    assert str(answer) == (
        'pods is forbidden: User "system:serviceaccount:default:robot" cannot list resource "pods" '
        'in API group "" in the namespace "default"'
    )
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    ref = {"apiGroup": group, "name": "reader"}
    everyone = [{"kind": "Group", "apiGroup": group, "name": "system:serviceaccounts:default"}]
    at_once(f"clusterroles.{group}", metadata={"name": "reader"}, rules=rules)
    at_once(
        f"rolebindings.{group}",
        metadata={"name": "reader"},
        roleRef={**ref, "kind": "ClusterRole"},
        subjects=everyone,
    )
    ask(robot, lambda http: http.get("/api/v1/namespaces/default/pods", {}))
    for path in ("/api/v1/pods", "/api/v1/namespaces/kube-system/pods", "/api/v1/namespaces/default/pods/x"):
        assert refused(robot, lambda http, path=path: http.get(path, {})).code == 403
    assert (
        refused(robot, lambda http: http.get("/api/v1/namespaces/default/pods", {"watch": "1"})).code == 403
    )
    lab.run(lambda: lab.server.client.delete("clusterroles." + group, "reader"))
    assert refused(robot, lambda http: http.get("/api/v1/namespaces/default/pods", {})).code == 403


def test_a_token_counts_while_its_account_is_there(lab: Lab) -> None:
    def discover(http: ApiHttp) -> Any:
        return http.get("/apis", {})

    ask(access(lab, rights.AGENT), discover)
    assert refused(access(lab, "nobody"), discover).code == 401
    assert refused(access(lab, rights.AGENT, uid="of an earlier one"), discover).code == 401
    assert refused(access(lab, rights.AGENT, expires_s=time.time() - 1), discover).code == 401
    assert refused(access(lab, rights.AGENT, audiences=("vault",)), discover).code == 401
    good = access(lab, rights.AGENT)
    head, claims, signature = good.token.split(".")
    for token in (f"{head}.{claims}.", f"{head}.{claims}x.{signature}", f"{head}..{signature}", "..", "x"):
        forged = Access(good.server, ca_pem=good.ca_pem, token=token)
        assert refused(forged, discover).code == 401


@pytest.mark.parametrize("account", [rights.AGENT, rights.CONTROLLER])
def test_the_daemons_read_no_secret_and_make_nothing_of_others(lab: Lab, account: str) -> None:
    where = access(lab, account)
    for path in ("/api/v1/secrets", "/api/v1/namespaces/kube-system/secrets/x", "/api/v1/configmaps"):
        assert refused(where, lambda http, path=path: http.get(path, {})).code == 403
    for path in ("/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/secrets"):
        assert refused(where, lambda http, path=path: http.post(path, b"{}")).code == 403
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    assert refused(where, lambda http: http.post(bindings, b"{}")).code == 403


def test_the_controller_leads_and_gives_addresses_with_its_rights_alone(lab: Lab) -> None:
    async def make(resource: str, **obj: Any) -> None:
        api_lab.make(lab.server.registry, resource, obj)

    pool = {"metadata": {"name": "p"}, "spec": {"addresses": ["192.0.2.10-192.0.2.11"]}}
    lab.run(lambda: make("loadbalancerpools.podlane.dev", **pool))
    spec = {"type": "LoadBalancer", "ports": [{"port": 80}], "ipFamilyPolicy": "SingleStack"}
    lab.run(lambda: make("services", metadata={"name": "web"}, spec=spec))
    lab.run(
        lambda: make("services", metadata={"name": "too-many"}, spec={**spec, "loadBalancerIP": "9.9.9.9"})
    )

    lab.run(lambda: make("nodes", metadata={"name": "bare"}))
    for name in ("one", "other"):
        lab.run(
            lambda name=name: make("nodes", metadata={"name": name}, spec={"podCIDRs": ["10.244.0.0/24"]})
        )
    config = parse({"controller": {"allocateNodeCIDRs": True}})

    async def run() -> None:
        stop = asyncio.Event()
        async with ApiHttp(access(lab, rights.CONTROLLER)) as http:
            options = ControllerOptions(lease_namespace=rights.NAMESPACE)
            daemon = asyncio.create_task(Daemon(options, config, HttpClient(http)).run(stop))
            async with asyncio.timeout(20):
                while True:
                    assert not daemon.done(), daemon.result()
                    if await asyncio.to_thread(lab.run, settled):
                        break
                    await asyncio.sleep(0.05)
            stop.set()
            await daemon

    async def settled() -> bool:
        client = lab.server.client
        web = await client.get("services", "web", "default")
        events, _ = await client.list("events")
        pools = await client.get("loadbalancerpools.podlane.dev", "p")
        bare, other = [await client.get("nodes", name) for name in ("bare", "other")]
        return bool(
            bare.get("spec", {}).get("podCIDRs") == ["10.244.1.0/24", "fd00:10:244::/64"]
            and condition(other, MISCONFIGURED)
            and web["status"].get("loadBalancer", {}).get("ingress")
            and web["metadata"].get("finalizers")
            and pools.get("status", {}).get("conditions")
            and any(e["involvedObject"]["name"] == "too-many" for e in events)
        )

    asyncio.run(run())
    leases = lab.run(lambda: lab.server.client.list("leases.coordination.k8s.io", rights.NAMESPACE))[0]
    assert [lease["metadata"]["name"] for lease in leases] == [rights.LEASE]
