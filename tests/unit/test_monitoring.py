"""Alerts and dashboard: what is committed is what the sources make, PromQL is PromQL, each alert fires."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from podlane.observe import process
from podlane.observe.exposition import Histogram, Histograms, Metric, exposition, gauge
from tests.monitoring import ROOT, RULES, alerts, lint, parse, queries

CASES = yaml.safe_load((ROOT / "tests" / "cases" / "alerts.yaml").read_text())


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_committed_is_what_the_sources_make() -> None:
    spec = importlib.util.spec_from_file_location("monitoring", ROOT / "scripts" / "monitoring.py")
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, text in module.made().items():
        assert path.read_text() == text, f"{path.name}: run scripts/monitoring.py"


def test_what_is_scraped_is_what_is_deployed() -> None:
    found = list(yaml.safe_load_all((ROOT / "deploy" / "podlane.yaml").read_text()))
    workloads = [each for each in found if each and each["kind"] in ("DaemonSet", "Deployment")]
    monitor = yaml.safe_load((RULES.parent / "podlane.podmonitor.yaml").read_text())
    (job,) = yaml.safe_load((RULES.parent / "podlane.scrape.yaml").read_text())["scrape_configs"]
    (discovery,) = job["kubernetes_sd_configs"]
    assert len(workloads) == 2
    for each in workloads:
        pod = each["spec"]["template"]
        ports = [port["name"] for c in pod["spec"]["containers"] for port in c.get("ports", ())]
        assert monitor["spec"]["podMetricsEndpoints"][0]["port"] in ports
        assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        namespace = each["metadata"]["namespace"]
        assert [namespace] == discovery["namespaces"]["names"] == [monitor["metadata"]["namespace"]]


def test_every_expression_is_promql(tmp_path: Path) -> None:
    promtool("check", "rules", str(RULES))
    expressions = [
        q.replace("$__rate_interval", "5m").replace("$node", ".*")
        for q in queries()
        if not q.startswith("label_values(")
    ]
    recorded = [{"record": f"panel:{n}", "expr": each} for n, each in enumerate(expressions)]
    rules = tmp_path / "panels.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
    promtool("check", "rules", str(rules))


def test_every_alert_fires_and_says_what_is_wrong(tmp_path: Path) -> None:
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "description"}
            del rule["annotations"]["description"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    by_name = {rule["alert"]: rule for rule in alerts()}
    assert set(by_name) == set(CASES)
    tests = [_test(name, case, by_name[name]["labels"]) for name, case in CASES.items()]
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    promtool("test", "rules", str(tmp_path / "tests.yaml"))


def _test(name: str, case: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    expected = {
        "exp_labels": {**case["labels"], **labels},
        "exp_annotations": {"summary": case["summary"]},
    }
    series = {**case["fires"], **case.get("quiet", {})}
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "alert_rule_test": [{"eval_time": case["after"], "alertname": name, "exp_alerts": [expected]}],
    }


def test_what_is_written_is_what_prometheus_reads() -> None:
    work = Histograms((0.1, 1), "kind")
    for value in (0.05, 0.5, 7):
        work.of("Pod").observe(value)
    strange = {"a": 'back\\slash "quoted"\nand a new line'}
    found = parse(
        exposition(
            "x_",
            [
                gauge("large", "Exact.", 2**53 - 1),
                gauge("small", "Exact.", 0.1 + 0.2),
                Metric("strange", "counter", "Labels.", [(strange, 12345678.5)]),
                Metric("nothing", "gauge", "No samples.", []),
                Metric("work_seconds", "histogram", "Work.", work.samples),
            ],
        )
    )
    assert found["x_large"].samples[0].value == 2**53 - 1
    assert found["x_small"].samples[0].value == 0.1 + 0.2
    (odd,) = found["x_strange"].samples
    assert (odd.labels, odd.value) == (strange, 12345678.5)
    assert found["x_nothing"].samples == []
    counts = {s.labels.get("le", s.name): s.value for s in found["x_work_seconds"].samples}
    assert counts == {"0.1": 1, "1": 2, "+Inf": 3, "x_work_seconds_sum": 7.55, "x_work_seconds_count": 3}


def test_a_value_at_a_bound_is_within_it() -> None:
    found = Histogram((1, 2))
    found.observe(1)
    assert [value for _, _, value in found.samples()] == [1, 1, 1, 1, 1]


def test_a_process_tells_of_itself() -> None:
    text = process.text("agent")
    lint(text)
    found = {name: family.samples[0].value for name, family in parse(text).items()}
    assert found["process_resident_memory_bytes"] > 2**20
    assert 0 < found["process_open_fds"] < found["process_max_fds"]
    assert found["process_start_time_seconds"] > 1.6e9


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("# HELP a_ms Time.\n# TYPE a_ms gauge\na_ms 1\n", "base unit"),
        ("# HELP a_total Many.\n# TYPE a_total gauge\na_total 1\n", "is a gauge"),
        ("# HELP a Many.\n# TYPE a counter\na 1\n", "is a counter"),
        ("# HELP a Many\n# TYPE a gauge\na 1\n", "no sentence"),
    ],
)
def test_the_lint_finds_what_is_wrong(text: str, fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        lint(text)
