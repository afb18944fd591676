"""Scrape configuration and rules: right ports, existing metrics, and promtool's own opinion."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

import pytest
import yaml

from tests.support.promql import PROMETHEUS_OWN, ROOT, binary, exported_names, metric_names
from vlad_configs.serving import ServeConfig

FOLDER = ROOT / "deploy" / "prometheus"

needs_promtool = pytest.mark.skipif(binary("promtool") is None, reason="no promtool; try `make prometheus`")


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (
            'sum by (le) (rate(a_bucket{x=~"b|c"}[5m])) / on (y) clamp_min(d_total, 1e-9)',
            {"a_bucket", "d_total"},
        ),
        (
            'histogram_quantile(0.99, sum by (stage, le) (rate(e_bucket{f="$g"}[$__rate_interval])))',
            {"e_bucket"},
        ),
        ("max(h) > 0 and on () time() - i:j:k > 5 unless l", {"h", "i:j:k", "l"}),
        ("vector($period)", set()),
    ],
)
def test_metric_names_are_found_in_queries(query: str, names: set[str]) -> None:
    assert metric_names(query) == names


def test_prometheus_scrapes_the_default_metrics_port() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    port = ServeConfig(environment="LIBERO", checkpoint="demo").metrics_port
    assert job["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]
    assert [(FOLDER / name).is_file() for name in config["rule_files"]] == [True]


def test_every_rule_reads_metrics_that_exist() -> None:
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    known = exported_names() | recorded | PROMETHEUS_OWN
    for rule in _rules():
        names = metric_names(rule["expr"])
        assert names, rule
        assert names <= known, f"{rule.get('alert', rule.get('record'))} reads {sorted(names - known)}"


def test_every_alert_says_what_to_think_and_has_an_example() -> None:
    tests = yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]
    examples = {
        case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]
    }
    alerts = [rule for rule in _rules() if "alert" in rule]
    for alert in alerts:
        assert set(alert["annotations"]) == {"summary", "description"}, alert["alert"]
        assert alert["labels"]["severity"] in ("page", "ticket"), alert["alert"]
    assert examples == {alert["alert"] for alert in alerts}


@needs_promtool
@pytest.mark.parametrize(
    "arguments", [["check", "config", "prometheus.yml"], ["check", "rules", "rules.yml"]], ids=" ".join
)
def test_promtool_accepts_the_configuration(arguments: list[str]) -> None:
    _promtool(*arguments)


@needs_promtool
def test_promtool_confirms_the_example_of_each_alert() -> None:
    _promtool("test", "rules", "rules_test.yml")


@needs_promtool
def test_promtool_notices_a_rule_that_no_longer_fires(tmp_path: pathlib.Path) -> None:
    broken = (FOLDER / "rules.yml").read_text().replace("up{job=", "up{work=")
    (tmp_path / "rules.yml").write_text(broken)
    (tmp_path / "rules_test.yml").write_text((FOLDER / "rules_test.yml").read_text())
    with pytest.raises(AssertionError):
        _promtool("test", "rules", "rules_test.yml", folder=tmp_path)


def _promtool(*arguments: str, folder: pathlib.Path = FOLDER) -> None:
    tool = binary("promtool")
    assert tool is not None
    result = subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
