"""Ranges of service addresses and the records of each: over the real API with its controllers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from podlane.errors import ApiError, InvalidError
from podlane.lab.client import Obj
from tests.unit.controller_lab import Cluster, cluster, service

CIDRS = "servicecidrs.networking.k8s.io"
ADDRESSES = "ipaddresses.networking.k8s.io"
FINALIZER = "networking.k8s.io/service-cidr-finalizer"


def run(story: Callable[[Cluster], Awaitable[None]]) -> None:
    async def main() -> None:
        async with cluster(nodes=1) as lab:
            await story(lab)

    asyncio.run(main())


def cidr(name: str, *cidrs: str) -> Obj:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs)},
    }


def there(lab: Cluster, resource: str, name: str, namespace: str = "") -> Obj | None:
    record = lab.server.store.get(resource, namespace, name)
    return record.obj if record else None


def ready(lab: Cluster, name: str) -> tuple[str, str]:
    found = (there(lab, CIDRS, name) or {}).get("status", {}).get("conditions", [])
    return next(((c["status"], c["reason"]) for c in found if c["type"] == "Ready"), ("", ""))


def web(name: str, **spec: Any) -> Obj:
    return service(name, {"app": name}, [{"port": 80}], **spec)


def test_ranges_are_ready_and_the_one_from_the_start_comes_back() -> None:
    async def story(lab: Cluster) -> None:
        await lab.until(lambda: ready(lab, "kubernetes") == ("True", ""))
        assert lab.one(CIDRS, "kubernetes", "")["spec"]["cidrs"] == ["10.96.0.0/16", "fd00:10:96::/112"]
        for record in lab.all("services", ""):
            await lab.client.delete("services", record["metadata"]["name"], "default")
        before = lab.one(CIDRS, "kubernetes", "")["metadata"]["uid"]
        await lab.client.delete(CIDRS, "kubernetes", "")
        await lab.until(lambda: (c := there(lab, CIDRS, "kubernetes")) and c["metadata"]["uid"] != before)
        await lab.until(lambda: ready(lab, "kubernetes") == ("True", ""))

    run(story)


def test_a_range_gives_addresses_until_it_is_deleted_and_stays_while_one_is_held() -> None:
    async def story(lab: Cluster) -> None:
        with pytest.raises(InvalidError, match="does not match the current range"):
            await lab.create("services", web("early", clusterIP="10.97.0.5"))
        await lab.create(CIDRS, cidr("more", "10.97.0.0/28"), "")
        made = await lab.create("services", web("held", clusterIP="10.97.0.5"))
        assert made["spec"]["clusterIPs"] == ["10.97.0.5"]
        await lab.until(lambda: ready(lab, "more") == ("True", ""))
        assert FINALIZER in lab.one(CIDRS, "more", "")["metadata"]["finalizers"]
        await lab.client.delete(CIDRS, "more", "")
        await lab.until(lambda: ready(lab, "more") == ("False", "Terminating"))
        with pytest.raises(InvalidError, match="does not match the current range"):
            await lab.create("services", web("late", clusterIP="10.97.0.6"))
        # Another range that has the address lets this one go; and so would the end of the Service.
        await lab.create(CIDRS, cidr("wider", "10.97.0.0/24"), "")
        await lab.until(lambda: there(lab, CIDRS, "more") is None)
        await lab.client.delete(CIDRS, "wider", "")
        await lab.until(lambda: ready(lab, "wider") == ("False", "Terminating"))
        await lab.client.delete("services", "held", "default")
        await lab.until(lambda: there(lab, CIDRS, "wider") is None)
        assert there(lab, ADDRESSES, "10.97.0.5") is None

    run(story)


def test_a_range_that_is_full_gives_way_to_the_next() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(CIDRS, cidr("tiny", "10.97.0.0/29", "fd00:10:97::/125"), "")
        for number in range(1, 7):
            await lab.create("services", web(f"s{number}", clusterIP=f"10.97.0.{number}"))
        with pytest.raises(InvalidError, match="already allocated"):
            await lab.create("services", web("seventh", clusterIP="10.97.0.3"))
        with pytest.raises(InvalidError, match="does not match the current range"):
            await lab.create("services", web("broadcast", clusterIP="10.97.0.7"))
        assert (await lab.create("services", web("any")))["spec"]["clusterIP"].startswith("10.96.")

    run(story)


@pytest.mark.parametrize(
    ("cidrs", "why"),
    [
        ([], "spec.cidrs: Required value: at least one CIDR required"),
        (["10.97.0.0/16", "10.98.0.0/16"], "may specify no more than one IP for each IP family"),
        (["10.97.0.0/16", "fd00::/64", "fd01::/64"], "may only hold up to 2 values"),
        (["10.97.0.1/16"], "spec.cidrs[0]: Invalid value"),
        (["fd00:10:97::/48"], "the prefix must be /64 or longer"),
        (["10.97.0.0"], "spec.cidrs[0]: Invalid value"),
    ],
)
def test_ranges_that_are_refused(cidrs: list[str], why: str) -> None:
    async def story(lab: Cluster) -> None:
        with pytest.raises(InvalidError) as error:
            await lab.create(CIDRS, cidr("bad", *cidrs), "")
        assert why in str(error.value)

    run(story)


def test_a_range_may_get_a_second_family_and_nothing_else() -> None:
    async def story(lab: Cluster) -> None:
        await lab.create(CIDRS, cidr("more", "10.97.0.0/24"), "")
        both = {"spec": {"cidrs": ["10.97.0.0/24", "fd00:10:97::/112"]}}
        assert (await lab.edit(CIDRS, "more", both, ""))["spec"] == both["spec"]
        for other in (["10.98.0.0/24", "fd00:10:97::/112"], ["10.97.0.0/24"]):
            with pytest.raises(InvalidError, match="field is immutable"):
                await lab.edit(CIDRS, "more", {"spec": {"cidrs": other}}, "")

    run(story)


def test_an_address_that_is_deleted_is_recorded_again_and_told() -> None:
    async def story(lab: Cluster) -> None:
        ip = (await lab.create("services", web("web")))["spec"]["clusterIP"]
        await lab.client.delete(ADDRESSES, ip, "")
        found = await lab.until(lambda: there(lab, ADDRESSES, ip))
        assert found["spec"]["parentRef"] == {
            "group": "",
            "resource": "services",
            "namespace": "default",
            "name": "web",
        }
        await lab.until(lambda: [e for e in lab.all("events") if e["reason"] == "ClusterIPNotAllocated"])

    run(story)


def test_an_address_of_no_service_goes_after_a_minute_if_it_is_the_allocators() -> None:
    async def story(lab: Cluster) -> None:
        def record(ip: str, **labels: str) -> Obj:
            parent = {"group": "", "resource": "services", "namespace": "default", "name": "nobody"}
            return {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "IPAddress",
                "metadata": {"name": ip, "labels": labels},
                "spec": {"parentRef": parent},
            }

        managed = {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}
        await lab.create(ADDRESSES, record("10.96.77.1", **managed), "")
        await lab.create(ADDRESSES, record("10.96.77.2"), "")
        await lab.settled()
        assert there(lab, ADDRESSES, "10.96.77.1")
        lab.clock.ahead_s = 61
        await lab.manager.stop()
        lab.start_manager()
        await lab.until(lambda: there(lab, ADDRESSES, "10.96.77.1") is None)
        assert there(lab, ADDRESSES, "10.96.77.2")
        with pytest.raises(InvalidError, match="already allocated"):
            await lab.create("services", web("web", clusterIP="10.96.77.2"))

    run(story)


@pytest.mark.parametrize(
    ("name", "parent", "why"),
    [
        ("10.96.0.010", {"resource": "services", "name": "a"}, "metadata.name: Invalid value"),
        ("web", {"resource": "services", "name": "a"}, "metadata.name: Invalid value"),
        ("fd00:0::1", {"resource": "services", "name": "a"}, "metadata.name: Invalid value"),
        ("10.96.0.10", None, "spec.parentRef: Required value"),
        ("10.96.0.10", {"resource": "services"}, "spec.parentRef.name: Required value"),
        ("10.96.0.10", {"name": "a"}, "spec.parentRef.resource: Required value"),
    ],
)
def test_addresses_that_are_refused(name: str, parent: Any, why: str) -> None:
    async def story(lab: Cluster) -> None:
        spec = {"parentRef": parent} if parent else {}
        body = {"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": name}}
        with pytest.raises((InvalidError, ApiError)) as error:
            await lab.create(ADDRESSES, {**body, "spec": spec}, "")
        assert why in str(error.value)

    run(story)
