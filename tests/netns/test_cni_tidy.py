"""What an agent that runs puts in order by itself, from time to time."""

from __future__ import annotations

import asyncio
import json

from podlane.cni import client, plugins, wire
from podlane.cni.service import SPOOL, CniService
from podlane.errors import KernelError
from podlane.kernel.rtnl import Rtnl
from tests.netns.cni_node import make_node
from tests.netns.test_cni_types import network


async def until(condition, what):
    end_s = asyncio.get_running_loop().time() + 10
    while not condition():
        assert asyncio.get_running_loop().time() < end_s, f"not in time: {what}"
        await asyncio.sleep(0.02)


def test_leaks_and_kept_deletes_go_while_the_agent_runs(namespaces, tmp_path):
    async def run() -> None:
        node, socket = namespaces(), tmp_path / "cni.sock"
        make_node(node)
        service = CniService(
            tmp_path / "state", socket, "boot", plugins.load(), netns_fd=node, tidy_every_s=0.05
        )
        await service.serve()
        try:
            whole, leases = network(tmp_path), tmp_path / "networks" / "net"
            for name in ("a", "b", "stays"):
                await client.call(
                    socket, "ADD", netns_fd=namespaces(), container_id=name, config=whole, netns="/x"
                )
            collect, failed = service.plugin.collect, asyncio.Event()

            async def collect_badly():
                failed.set()
                raise KernelError(12, "list links")

            service.plugin.collect = collect_badly  # a machine without memory, for a while
            await failed.wait()
            service.plugin.collect = collect
            with Rtnl(node) as rt:
                notes = dict(service.host.records.all("bridge"))
                device = next(note["device"] for owner, note in notes.items() if owner.container_id == "a")
                rt.delete_link(device)
            await until(lambda: not (leases / "10.22.0.2").exists(), "the leaked address is free")
            environment = {
                "CNI_COMMAND": "DEL",
                "CNI_CONTAINERID": "b",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": "/x",
            }
            request = wire.pack_request(environment, json.dumps(whole).encode())
            (tmp_path / "state" / SPOOL).mkdir(exist_ok=True)
            (tmp_path / "state" / SPOOL / "1.request").write_bytes(request)
            await until(lambda: not (leases / "10.22.0.3").exists(), "the DEL that was kept is done")
            await until(lambda: not list((tmp_path / "state" / SPOOL).iterdir()), "the spool is empty")
            assert [o.container_id for o, _ in service.host.records.all("bridge")] == ["stays"]
        finally:
            await service.stop_serving()
            await service.close()

    asyncio.run(run())
