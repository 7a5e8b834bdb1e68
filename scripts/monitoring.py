"""Makes what the Prometheus operator wants of deploy/alerts/, and deploy/grafana/podlane.json.

    .venv/bin/python scripts/monitoring.py

The rules' one source is deploy/alerts/podlane.rules.yaml; the dashboard's is the table below. A test holds
that what is committed is what this makes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES = DEPLOY / "alerts" / "podlane.rules.yaml"
PROMETHEUS_RULE = DEPLOY / "alerts" / "podlane.prometheusrule.yaml"
POD_MONITOR = DEPLOY / "alerts" / "podlane.podmonitor.yaml"
DASHBOARD = DEPLOY / "grafana" / "podlane.json"

WIDTH, HEIGHT = 8, 7  # of a panel, in the grid of 24 columns
_ONE = 'instance=~"$node"'
_NODE = f"{{{_ONE}}}"
_NO_LOCAL = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
_ENTRIES = "podlane_agent_conntrack_entries"


class Panel(NamedTuple):
    """queries: PromQL -> legend. NODE stands for the selector of the chosen nodes. unit: Grafana's name."""

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"


def quantile(name: str, by: str, part: float = 0.99) -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({part}, sum by ({labels}) (rate({name}_bucket{_NODE}[$__rate_interval])))"


def rate(name: str, by: str, where: str = _NODE) -> str:
    return f"sum by ({by}) (rate({name}{where}[$__rate_interval]))"


ROWS: dict[str, list[Panel]] = {
    "Nodes": [
        Panel(
            "Agents ready",
            "short",
            {"sum(podlane_agent_ready)": "ready", "count(podlane_agent_ready)": "all"},
            "stat",
        ),
        Panel(
            "Rows refused",
            "short",
            {f"sum by (instance, table) (podlane_agent_failed_rows{_NODE}) > 0": "{{instance}} {{table}}"},
        ),
        Panel(
            "Nodes whose pods are not reached",
            "short",
            {f'sum by (instance) (podlane_agent_peers{{{_ONE},state="down"}})': "{{instance}}"},
        ),
        Panel(
            "Versions",
            "short",
            {"count by (component, version) (podlane_build_info)": "{{component}} {{version}}"},
            "stat",
        ),
        Panel(
            "Conflicts with others on the node",
            "short",
            {f"sum by (instance, kind) (podlane_agent_conflicts{_NODE}) > 0": "{{instance}} {{kind}}"},
        ),
        Panel("Pods", "short", {f"podlane_agent_attachments{_NODE}": "{{instance}}"}),
        Panel(
            "Pods that nothing passes of", "short", {f"podlane_agent_pods_fail_closed{_NODE}": "{{instance}}"}
        ),
    ],
    "From a change to the kernel": [
        Panel(
            "Heard by the agent to in the kernel, 99 %",
            "s",
            {quantile("podlane_agent_programming_duration_seconds", "kind"): "{{kind}}"},
        ),
        Panel(
            "Endpoint changed to in the kernel, 99 %",
            "s",
            {quantile("kubeproxy_network_programming_duration_seconds", "ip_family"): "{{ip_family}}"},
        ),
        Panel(
            "Work of drivers, 99 %",
            "s",
            {quantile("podlane_agent_driver_work_duration_seconds", "driver, mode"): "{{driver}} {{mode}}"},
        ),
        Panel("Changes pending", "short", {f"podlane_agent_pending{_NODE}": "{{instance}}"}),
        Panel("Oldest pending change", "s", {f"podlane_agent_pending_oldest_seconds{_NODE}": "{{instance}}"}),
        Panel(
            "Repairs after others' changes",
            "ops",
            {rate("podlane_agent_driver_repairs_total", "instance, driver"): "{{instance}} {{driver}}"},
        ),
        Panel("Rows in tables", "short", {f"sum by (table) (podlane_agent_table_rows{_NODE})": "{{table}}"}),
        Panel("Generations", "ops", {rate("podlane_agent_generations_total", "instance"): "{{instance}}"}),
        Panel(
            "Errors of drivers",
            "ops",
            {
                rate(
                    "podlane_agent_driver_errors_total", "driver, table, error"
                ): "{{driver}} {{table}} {{error}}"
            },
        ),
    ],
    "Services": [
        Panel(
            "Rules programmed, 99 %",
            "s",
            {quantile("kubeproxy_sync_proxy_rules_duration_seconds", "ip_family"): "{{ip_family}}"},
        ),
        Panel(
            "Ports without a local endpoint",
            "short",
            {f"max by (traffic_policy) ({_NO_LOCAL}{_NODE})": "{{traffic_policy}}"},
        ),
        Panel(
            "Load-balancer addresses left",
            "short",
            {
                "podlane_controller_pool_addresses_available": "{{pool}} {{family}}",
                "podlane_controller_services_waiting": "services that wait",
            },
        ),
    ],
    "Connections": [
        Panel(
            "Connection tracking in use",
            "percentunit",
            {f"{_ENTRIES}{_NODE} / {_ENTRIES}_limit{_NODE}": "{{instance}}"},
        ),
        Panel(
            "What goes wrong in it",
            "ops",
            {rate("podlane_agent_conntrack_events_total", "instance, event"): "{{instance}} {{event}}"},
        ),
        Panel(
            "Stale flows ended",
            "ops",
            {rate("kubeproxy_conntrack_reconciler_deleted_entries_total", "instance"): "{{instance}}"},
        ),
        Panel(
            "Sent by tunnels and uplinks",
            "Bps",
            {
                rate(
                    "podlane_agent_network_transmit_bytes_total", "instance, device"
                ): "{{instance}} {{device}}"
            },
        ),
        Panel(
            "Received",
            "Bps",
            {
                rate(
                    "podlane_agent_network_receive_bytes_total", "instance, device"
                ): "{{instance}} {{device}}"
            },
        ),
        Panel(
            "Dropped there",
            "pps",
            {
                rate(
                    "podlane_agent_network_transmit_drops_total", "instance, device"
                ): "{{instance}} {{device}} out",
                rate(
                    "podlane_agent_network_receive_drops_total", "instance, device"
                ): "{{instance}} {{device}} in",
            },
        ),
        Panel(
            "BGP sessions",
            "short",
            {f"sum by (peers, state) (podlane_agent_bgp_sessions{_NODE})": "{{peers}} {{state}}"},
        ),
    ],
    "Pods": [
        Panel(
            "CNI requests, 99 %", "s", {quantile("podlane_agent_cni_duration_seconds", "verb"): "{{verb}}"}
        ),
        Panel(
            "CNI requests that failed",
            "ops",
            {
                rate(
                    "podlane_agent_cni_requests_total", "verb, code", '{instance=~"$node",code!="0"}'
                ): "{{verb}} {{code}}"
            },
        ),
        Panel(
            "Addresses left for pods",
            "short",
            {f"podlane_agent_pod_addresses_free{_NODE}": "{{instance}} {{range}}"},
        ),
    ],
    "API": [
        Panel(
            "Requests",
            "reqps",
            {rate("podlane_agent_api_requests_total", "verb, resource"): "{{verb}} {{resource}}"},
        ),
        Panel(
            "Requests that failed",
            "reqps",
            {
                rate(
                    "podlane_agent_api_requests_total",
                    "verb, resource, code",
                    '{instance=~"$node",code!~"2.."}',
                ): "{{verb}} {{resource}} {{code}}"
            },
        ),
        Panel(
            "Silence of watches",
            "s",
            {f"time() - podlane_agent_watch_last_heard_timestamp_seconds{_NODE}": "{{instance}} {{kind}}"},
        ),
        Panel(
            "Lists taken over",
            "ops",
            {rate("podlane_agent_watch_lists_total", "instance, kind"): "{{instance}} {{kind}}"},
        ),
        Panel("Controllers that lead", "short", {"sum(podlane_controller_leading)": "leading"}, "stat"),
        Panel("Work queues of the controller", "short", {"podlane_controller_workqueue_depth": "{{name}}"}),
    ],
    "Processes": [
        Panel("Memory", "bytes", {'process_resident_memory_bytes{job=~".*podlane.*"}': "{{instance}}"}),
        Panel(
            "Processor",
            "percentunit",
            {'rate(process_cpu_seconds_total{job=~".*podlane.*"}[$__rate_interval])': "{{instance}}"},
        ),
        Panel("File descriptors", "short", {'process_open_fds{job=~".*podlane.*"}': "{{instance}}"}),
    ],
}


def dashboard() -> dict[str, Any]:
    """Grafana's model of it, schema version 38 (Grafana 10)."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
            }
        )
        y += 1
        for place, each in enumerate(row):
            x = place * WIDTH % 24
            panels.append(_panel(each, len(panels) + 1, x, y + place * WIDTH // 24 * HEIGHT))
        y += -(-len(row) * WIDTH // 24) * HEIGHT
    source = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}
    node = {
        "name": "node",
        "type": "query",
        "label": "Node",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": "label_values(podlane_agent_ready, instance)", "refId": "node"},
        "includeAll": True,
        "multi": True,
        "refresh": 2,
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": "podlane",
        "title": "Podlane",
        "tags": ["kubernetes", "network", "podlane"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [source, node]},
        "panels": panels,
    }


def _panel(each: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": each.kind,
        "title": each.title,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": each.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, "datasource": source}
            for place, (query, legend) in enumerate(each.queries.items())
        ],
    }


def prometheus_rule() -> dict[str, Any]:
    return _of_operator("PrometheusRule", yaml.safe_load(RULES.read_text()))


def pod_monitor() -> dict[str, Any]:
    """Agents and controllers; `instance` is the node, as the alerts expect."""
    node = {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "instance"}
    return _of_operator(
        "PodMonitor",
        {
            "jobLabel": "app.kubernetes.io/name",
            "podTargetLabels": ["app.kubernetes.io/component"],
            "selector": {"matchLabels": {"app.kubernetes.io/name": "podlane"}},
            "podMetricsEndpoints": [{"port": "metrics", "relabelings": [node]}],
        },
    )


def _of_operator(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    labels = {"app.kubernetes.io/part-of": "podlane"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": kind,
        "metadata": {"name": "podlane", "namespace": "podlane-system", "labels": labels},
        "spec": spec,
    }


def made() -> dict[Path, str]:
    """What the files are to hold."""
    head = "# Made by scripts/monitoring.py from podlane.rules.yaml.\n"
    rule, monitor = (
        yaml.safe_dump(each, sort_keys=False, width=1000, allow_unicode=True)
        for each in (prometheus_rule(), pod_monitor())
    )
    return {
        PROMETHEUS_RULE: head + rule,
        POD_MONITOR: "# Made by scripts/monitoring.py.\n" + monitor,
        DASHBOARD: json.dumps(dashboard(), indent=2) + "\n",
    }


if __name__ == "__main__":
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
