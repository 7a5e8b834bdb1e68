"""One look at a running lab: nodes, agents, pods, and what is wrong."""

from __future__ import annotations

from collections import Counter
from typing import Any

from podlane.errors import PodlaneError
from podlane.lab import agents, ready, rest
from podlane.lab.record import LabRecord


def gather(record: LabRecord) -> dict[str, Any]:
    """{"name", "ready", "apiPort", "outside", "nodes": [{name, rack, addresses, pods, agent}], "problems"}"""
    problems: list[str] = []
    answers = True
    pods: list[dict[str, Any]] = []
    try:
        with rest.Client.from_kubeconfig(record.paths.kubeconfig) as client:
            pods = client.list("pods")
    except PodlaneError as error:
        answers = False
        problems.append(f"the API does not answer: {error}")
    for pod in pods:
        pod.setdefault("kind", "Pod")
        if why := ready.pod_missing(pod):
            problems.append(why)
    count = Counter(pod.get("spec", {}).get("nodeName", "") for pod in pods)
    nodes = []
    healthy = answers
    for node in record.nodes:
        try:
            agent = agents.status(record.paths.agent_socket(node.name))
            healthy &= bool(agent.get("ready")) and not agent.get("failures")
        except PodlaneError as error:
            agent = {"ready": False, "error": str(error)}
            healthy = False
        nodes.append(
            {
                "name": node.name,
                "rack": node.rack,
                "addresses": node.addresses,
                "pods": count[node.name],
                "agent": agent,
            }
        )
    return {
        "name": record.name,
        "ready": healthy,
        "apiPort": record.api_port,
        "outside": record.outside,
        "nodes": nodes,
        "problems": problems,
    }
