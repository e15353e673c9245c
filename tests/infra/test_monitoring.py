"""Dashboard and rules name metrics that the code has, and do what they are for."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from chorus.cluster.telemetry.metrics import DRIVER, WORKER
from tests.support.paths import ROOT

INFRA = ROOT / "infra"
RULES, TESTS = INFRA / "prometheus" / "rules.yml", INFRA / "prometheus" / "rules_test.yml"
CONFIG, DASHBOARD = INFRA / "prometheus" / "prometheus.yml", INFRA / "grafana" / "chorus.json"
# Of Ray itself; those of GPUs are there where a GPU is.
OF_RAY = {"ray_node_mem_used", "ray_node_mem_total", "ray_component_uss_bytes"}
OF_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available"}
# What the driver counts is never Ray's; what work is made of is Ray's, or the driver's own without Ray.
OF_CHORUS = {metric.name for metric in (*DRIVER, *WORKER)} | {f"ray_{metric.name}" for metric in WORKER}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """PromQL of all panels, as Grafana sends it where everything is selected."""
    targets = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [re.sub(r"\$(run|ensemble)", ".*", expr.replace("$__rate_interval", "1m")) for expr in targets]


def names(expression: str) -> set[str]:
    """Metrics of an expression: words that are neither in quotes, nor labels, nor PromQL's own."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring) *\([^)]*\)', " ", expression)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return words - {"sum", "rate", "increase", "or", "and", "offset", "m"}


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    ended = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=RULES.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_names_are_found_in_an_expression() -> None:
    assert names('sum by (run) (rate(a_total{b="c"}[2m])) / (d:e > 0) offset 10m') == {"a_total", "d:e"}


def test_rules_name_only_metrics_that_the_code_has() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        unknown = names(rule["expr"]) - OF_CHORUS - recorded
        assert not unknown, f"{rule.get('record', rule.get('alert'))} names {unknown}"


def test_dashboard_names_only_metrics_that_the_code_ray_or_a_rule_has() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for expression in expressions():
        unknown = names(expression) - OF_CHORUS - recorded - OF_RAY - OF_GPUS
        assert not unknown, f"{expression} names {unknown}"


def test_every_metric_is_seen_in_a_rule_or_on_the_dashboard() -> None:
    seen = set[str]().union(*(names(rule["expr"]) for rule in rules()), *map(names, expressions()))
    assert {metric.name for metric in (*DRIVER, *WORKER)} <= seen


def test_what_processes_of_ray_count_is_used_through_a_rule_that_takes_both_names() -> None:
    at_work = {metric.name for metric in WORKER}
    for rule in rules():
        plain = names(rule["expr"]) & at_work
        assert {f"ray_{name}" for name in plain} <= names(rule["expr"])
    assert not any(names(expression) & (at_work | {f"ray_{name}" for name in at_work}) for expression in expressions())


def test_every_alert_is_tried_by_the_tests_of_the_rules() -> None:
    tried = {
        case["alertname"]
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tried == {rule["alert"] for rule in rules() if "alert" in rule}


def test_rules_are_right_and_alert_when_they_should() -> None:
    assert "SUCCESS" in promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", TESTS)


def test_configuration_is_right() -> None:
    assert "is valid prometheus config" in promtool("check", "config", CONFIG)


def test_expressions_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    made = [{"record": f"panel:{index}", "expr": expr} for index, expr in enumerate(expressions())]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]}))
    assert f"SUCCESS: {len(made)} rules found" in promtool("check", "rules", tmp_path / "panels.yml")


def test_panels_lie_side_by_side_and_have_a_title_and_a_unit() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in panels():
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        mine = set(itertools.product(range(x, x + width), range(y, y + height)))
        assert not mine & cells
        assert x + width <= 24
        cells |= mine
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
