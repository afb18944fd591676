"""docs/operations.md names the daemon's metrics, all of them and no others, with their label values."""

from __future__ import annotations

import re

import yaml
from prometheus_client import CollectorRegistry

from tests.support.promql import ROOT
from vlad_server.metrics import ServerMetrics

PAGE = (ROOT / "docs" / "operations.md").read_text()


def _rows() -> list[list[str]]:
    section = PAGE.split("## Metrics")[1].split("\n## ")[0]
    return [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `vlad_")]


def _families() -> dict[str, dict[str, set[str]]]:
    """Metric -> label -> values that exist from the start."""
    registry = CollectorRegistry()
    ServerMetrics(registry)
    found: dict[str, dict[str, set[str]]] = {}
    for family in registry.collect():
        if family.name.startswith("vlad_"):
            labels = found.setdefault(family.name + "_total" * (family.type == "counter"), {})
            for sample in family.samples:
                for label, value in sample.labels.items():
                    if label != "le":
                        labels.setdefault(label, set()).add(value)
    return found


def test_every_metric_is_in_the_table_and_every_row_exists() -> None:
    documented = {name for row in _rows() for name in re.findall(r"`(vlad_\w+)`", row[0])}
    assert documented == set(_families())


def test_label_values_are_the_real_ones() -> None:
    families = _families()
    checked = 0
    for names, labels, *_ in _rows():
        for label, values in re.findall(r"`(\w+)`: ([\w, ]+)", labels):
            for name in re.findall(r"`(vlad_\w+)`", names):
                assert set(values.strip().split(", ")) == families[name][label], name
                checked += 1
    assert checked >= 8


def test_the_page_counts_every_alert_among_pages_or_tickets() -> None:
    groups = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    severities = [
        rule["labels"]["severity"] for group in groups for rule in group["rules"] if "alert" in rule
    ]
    for severity, start in (("page", "Pages: "), ("ticket", "Tickets: ")):
        text = PAGE.split(start)[1].split(".")[0]
        assert len(text.split(",")) == severities.count(severity), severity
