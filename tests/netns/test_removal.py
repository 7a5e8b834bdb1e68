"""Links that are deleted are out of both namespaces when LinkRemover returns, and nothing else is."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface, ip_network

import pytest

from podlane.cni.removal import LinkRemover
from podlane.errors import KernelError
from podlane.kernel.rtnl import Rtnl
from podlane.model.addresses import Family


@pytest.fixture
def node(namespaces):
    """A node's namespace and a pod's, and a socket in each."""
    here, there = namespaces(), namespaces()
    with Rtnl(here) as rt, Rtnl(there) as pod:
        rt.create_bridge("cni0", up=True)
        yield here, there, rt, pod


def make(rt: Rtnl, there: int, number: int) -> None:
    rt.create_veth(f"a{number}", f"eth{number}", peer_netns=there, master="cni0", up=True, peer_up=True)


def names(*where: Rtnl) -> set[str]:
    return {link.name for each in where for link in each.links()} - {"lo", "cni0"}


def test_a_link_is_gone_at_both_ends_and_its_name_is_free(node):
    here, there, rt, pod = node

    async def run() -> None:
        remover = LinkRemover(here)
        try:
            for _ in range(10):
                make(rt, there, 0)
                rt.add_address("a0", ip_interface("10.0.0.1/24"))
                rt.add_route(ip_network("10.1.0.0/16"), device="a0")
                pod.add_address("eth0", ip_interface("10.0.0.2/24"))
                await remover.remove("a0")
                assert names(rt, pod) == set()
                assert rt.routes(Family.IPV4) == pod.routes() == []
            # What the kernel still frees has nothing to do with a new link of the same name.
            make(rt, there, 0)
        finally:
            await remover.close()
        assert names(rt, pod) == {"a0", "eth0"}

    asyncio.run(run())


def test_many_at_once_and_no_other(node):
    here, there, rt, pod = node

    async def run() -> None:
        for number in range(40):
            make(rt, there, number)
        remover = LinkRemover(here)
        try:
            doomed = [f"a{number}" for number in range(30)]
            first, second = doomed[:3], [*doomed[3:], "a0", "never"]
            await asyncio.gather(remover.remove_all(first), *(remover.remove(name) for name in second))
            assert names(rt, pod) == {f"{end}{number}" for end in ("a", "eth") for number in range(30, 40)}
        finally:
            await remover.close()

    asyncio.run(run())


def test_what_the_kernel_refuses_is_told_and_goes_on(node):
    here, there, rt, pod = node

    async def run() -> None:
        make(rt, there, 0)
        remover = LinkRemover(here)
        try:
            with pytest.raises(KernelError, match="delete link"):
                await remover.remove("lo")
            await remover.remove_all(["a0", "a1"])
            assert names(rt, pod) == set()
        finally:
            await remover.close()

    asyncio.run(run())
