"""Pods that the reference plugins (Debian's containernetworking-plugins) made, as a runtime has them made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from podlane.kernel import netns
from podlane.kernel.rtnl import Rtnl
from tests.netns.agent_nodes import PODS, TestNode
from tests.netns.standalone import REFERENCE, Caller

NETWORK = "cbr0"


class ReferenceNetwork:
    """bridge, host-local and portmap on a node, and libcni's notes of what they answered.

    flannel: as Flannel delegates, its network's routes by the bridge's address.
    """

    def __init__(self, node: TestNode, where: Path, *, masquerade: bool = True) -> None:
        self.node, self.caller = node, Caller(node.fd, REFERENCE)
        self.leases, self.results = where / "networks", where / "results"
        self.conf = where / "net.d"
        for each in (self.leases, self.results, self.conf):
            each.mkdir(parents=True)
        ranges = [[{"subnet": PODS[f].format(node.number)}] for f in node.families]
        cluster = {"IPv4": "10.244.0.0/16", "IPv6": "fd00:10:244::/56"}
        routes = [{"dst": cluster[f]} for f in node.families]
        self.plugins: list[dict[str, Any]] = [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isDefaultGateway": True,
                "hairpinMode": True,
                "ipMasq": masquerade,
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": routes,
                    "dataDir": str(self.leases),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        conflist = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": self.plugins}
        (self.conf / "10-flannel.conflist").write_text(json.dumps(conflist))

    @property
    def flags(self) -> tuple[str, ...]:
        return (
            f"--host-local-dir={self.leases}",
            f"--cni-cache-dir={self.results}",
            f"--cni-conf-dir={self.conf}",
        )

    def _configs(self, mappings: list[dict[str, Any]]) -> list[dict[str, Any]]:
        common = {"cniVersion": "1.0.0", "name": NETWORK}
        return [
            {
                **common,
                **plugin,
                **({"runtimeConfig": {"portMappings": mappings}} if "capabilities" in plugin else {}),
            }
            for plugin in self.plugins
        ]

    def add(self, name: str, *mappings: dict[str, Any]) -> dict[str, str]:
        """A running pod. Returns its address by family."""
        fd = self.node.pods[name] = netns.new()
        with Rtnl(fd) as rt:
            rt.set_up("lo")
        result: dict[str, Any] | None = None
        for config in self._configs(list(mappings)):
            given = {**config, **({"prevResult": result} if result else {})}
            result = self.caller.call("ADD", name, fd, given)
        assert result is not None
        document = {
            "kind": "cniCacheV1",
            "containerId": name,
            "config": "",
            "ifName": "eth0",
            "networkName": NETWORK,
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", name]],
            "capabilityArgs": {"portMappings": list(mappings)},
            "result": result,
        }
        (self.results / f"{NETWORK}-{name}-eth0").write_text(json.dumps(document))
        return {
            ("IPv6" if ":" in ip["address"] else "IPv4"): ip["address"].partition("/")[0]
            for ip in result["ips"]
        }

    def delete(self, name: str) -> None:
        """DEL by the plugins that made it, with the configuration of then, as CRI-O does."""
        fd = self.node.pods.pop(name)
        document = json.loads((self.results / f"{NETWORK}-{name}-eth0").read_text())
        for config in reversed(self._configs(document["capabilityArgs"]["portMappings"])):
            self.caller.call("DEL", name, fd, {**config, "prevResult": document["result"]})
        os.close(fd)

    def leased(self) -> set[str]:
        where = self.leases / NETWORK
        return {p.name for p in where.iterdir() if p.name[0].isdigit() or p.name.startswith("fd")}
