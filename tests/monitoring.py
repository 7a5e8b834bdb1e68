"""Reading what daemons tell Prometheus: with its own parser, and by its rules for names."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy" / "alerts" / "podlane.rules.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "podlane.json"
DOCS = ROOT / "docs" / "observability.md"

_NAME = re.compile(r"\b(?:podlane|kubeproxy|process)_[a-z0-9_]+")
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")
_NO_UNIT = re.compile(r"_(?:ms|milliseconds|kib|mib|percent|minutes)(?:_|$)")
_UNITS = ("seconds", "bytes", "ratio", "info", "total", "count")
# kube-proxy calls a gauge so, and its dashboards know it by that name.
_KUBE_PROXYS_OWN = frozenset({"kubeproxy_sync_proxy_rules_no_local_endpoints_total"})


def parse(text: str) -> dict[str, Metric]:
    """By the name that stands behind TYPE. Fails for what Prometheus' own parser does not read."""
    declared = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")]
    assert len(declared) == len(set(declared)), "told twice"
    families = list(text_string_to_metric_families(text))
    assert len(families) == len(declared)
    return dict(zip(declared, families, strict=True))


def lint(text: str) -> None:
    """Names, units and helps as prometheus.io/docs/practices/naming wants them, and as promtool does."""
    for name, family in parse(text).items():
        assert family.documentation.endswith("."), f"{name}: help is no sentence: {family.documentation!r}"
        assert family.type in ("counter", "gauge", "histogram"), name
        if name not in _KUBE_PROXYS_OWN:
            assert (family.type == "counter") == name.endswith("_total"), f"{name} is a {family.type}"
        if family.type == "histogram":
            assert name.endswith(_UNITS[:2]), f"{name}: no unit"
        assert not _NO_UNIT.search(name), f"{name}: not a base unit"
        for sample in family.samples:
            assert all(re.fullmatch("[a-z][a-z_]*", label) for label in sample.labels), sample
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    found = [line for line in done.stderr.splitlines() if line.split()[0] not in _KUBE_PROXYS_OWN]
    assert found == []


def names(expression: str) -> set[str]:
    """Metrics that a PromQL expression names, histograms without what follows their names."""
    return {_SUFFIX.sub("", name) if "_bucket" in name else name for name in _NAME.findall(expression)}


def alerts() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def queries() -> list[str]:
    """Of the dashboard's panels and variables."""
    board = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    return found + [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]


def wanted() -> set[str]:
    """What alerts and dashboard need."""
    found = set().union(*(names(rule["expr"]) for rule in alerts()))
    return found.union(*map(names, queries()))


def documented() -> dict[str, str]:
    """name -> type, of the tables in docs/observability.md."""
    rows = re.findall(
        r"^\| `((?:podlane|kubeproxy|process)_[a-z_]+)`(?: [^|]*)? \| (\w+) \|",
        DOCS.read_text(),
        re.MULTILINE,
    )
    assert len(rows) == len(dict(rows)), "a metric stands there twice"
    return dict(rows)
