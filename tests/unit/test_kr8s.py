"""A foreign client against the API: kr8s asks for other things than kubectl and the official client do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import kr8s
import pytest
from kr8s.asyncio import objects

from tests.unit.api_lab import Lab, running

# It was written for the versions up to 1.35, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Kubernetes version")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("kr8s")) as found:
        yield found


def play(lab: Lab, story: Callable[[Any], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await story(await kr8s.asyncio.api(kubeconfig=lab.kubeconfig))
            await asyncio.sleep(0.1)  # its connections say goodbye

    asyncio.run(main())


def config_map(name: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "data": {"a": "1"},
    }


def test_made_read_changed_and_removed(lab: Lab) -> None:
    async def story(api: Any) -> None:
        made = await objects.ConfigMap(config_map("crud", app="x"), api=api)
        await made.create()
        assert await made.exists()
        await made.patch({"data": {"b": "2"}})
        assert made.data == {"a": "1", "b": "2"}
        await made.patch([{"op": "remove", "path": "/data/a"}], type="json")
        await made.label(tier="front")
        await made.annotate(note="hello")
        again = await objects.ConfigMap.get("crud", namespace="default", api=api)
        assert again.data == {"b": "2"}
        assert (again.labels["tier"], again.annotations["note"]) == ("front", "hello")
        found = [o.name async for o in api.get("configmaps", namespace="default", label_selector="app=x")]
        assert found == ["crud"]
        with pytest.raises(kr8s.ServerError) as caught:
            await (await objects.ConfigMap(config_map("crud"), api=api)).create()
        assert "already exists" in str(caught.value)
        await made.delete()
        assert not await made.exists()
        with pytest.raises(kr8s.NotFoundError):
            await objects.ConfigMap.get("crud", namespace="default", api=api)

    play(lab, story)


def test_a_service_gets_its_address_and_a_deployment_scales(lab: Lab) -> None:
    async def story(api: Any) -> None:
        spec = {"selector": {"app": "w"}, "ports": [{"port": 80}]}
        meta = {"name": "w", "namespace": "default"}
        service = await objects.Service({"metadata": meta, "spec": spec}, api=api)
        await service.create()
        assert service.spec.clusterIP.startswith("10.96.")
        template = {
            "metadata": {"labels": {"app": "w"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }
        body = {
            "metadata": meta,
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "w"}}, "template": template},
        }
        deployment = await objects.Deployment(body, api=api)
        await deployment.create()
        await deployment.patch({"spec": {"replicas": 3}})
        await deployment.refresh()
        assert deployment.replicas == 3
        await deployment.delete()
        await service.delete()

    play(lab, story)


def test_pages_are_put_together(lab: Lab) -> None:
    async def story(api: Any) -> None:
        names = [f"page-{number:03}" for number in range(120)]
        for name in names:
            await (await objects.ConfigMap(config_map(name, app="pages"), api=api)).create()
        async with api.call_api(
            "GET", url="configmaps", namespace="default", params={"limit": 50, "labelSelector": "app=pages"}
        ) as answer:
            first = answer.json()
        assert len(first["items"]) == 50
        async with api.call_api(
            "GET",
            url="configmaps",
            namespace="default",
            params={"limit": 100, "labelSelector": "app=pages", "continue": first["metadata"]["continue"]},
        ) as answer:
            rest = answer.json()
        assert [o["metadata"]["name"] for o in (*first["items"], *rest["items"])] == names
        assert not rest["metadata"].get("continue")

    play(lab, story)


def test_what_happens_is_watched(lab: Lab) -> None:
    async def story(api: Any) -> None:
        seen: list[tuple[str, str]] = []

        async def watch() -> None:
            async for kind, obj in api.watch("configmaps", namespace="default", label_selector="app=watched"):
                seen.append((kind, obj.name))
                if kind == "DELETED":
                    return

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.2)
        made = await objects.ConfigMap(config_map("watched", app="watched"), api=api)
        await made.create()
        await made.patch({"data": {"b": "2"}})
        await made.delete()
        await asyncio.wait_for(watching, 20)
        assert seen == [("ADDED", "watched"), ("MODIFIED", "watched"), ("DELETED", "watched")]

    play(lab, story)


def test_kinds_and_versions_are_discovered(lab: Lab) -> None:
    async def story(api: Any) -> None:
        assert (await api.version())["major"] == "1"
        kinds = {each["kind"] for each in await api.api_resources()}
        assert {"Pod", "Service", "NetworkPolicy", "EndpointSlice", "ServiceCIDR"} <= kinds

    play(lab, story)
