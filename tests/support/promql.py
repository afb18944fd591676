"""What the tests of `deploy/` know about Prometheus: names in a query, names of the daemon, the binaries."""

from __future__ import annotations

import os
import pathlib
import re
import shutil

from prometheus_client import CollectorRegistry

from vlad_server.metrics import ServerMetrics

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROMETHEUS_OWN = frozenset(["up", "ALERTS"])
"""Series that Prometheus makes itself."""

_WORDS = frozenset(["and", "or", "unless", "bool", "offset", "inf", "nan"])
_SUFFIXES = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "summary": ("_count", "_sum", "_created", ""),
    "info": ("_info",),
}


def metric_names(query: str) -> set[str]:
    """Names of the series that a PromQL query reads."""
    query = re.sub(r'"(?:[^"\\]|\\.)*"', "", query)
    query = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\$\w+", "", query)
    query = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", query)
    names = re.findall(r"(?<![\w:.])([A-Za-z_:][\w:]*)(?!\s*\(|[\w:])", query)
    return {name for name in names if name.lower() not in _WORDS}


def exported_names() -> set[str]:
    """Names of all samples that the daemon can export."""
    registry = CollectorRegistry()
    ServerMetrics(registry)
    return {
        family.name + suffix for family in registry.collect() for suffix in _SUFFIXES.get(family.type, ("",))
    }


def binary(name: str) -> str | None:
    """Path of `promtool`, `prometheus` or `nginx`: on the PATH, or where `make` unpacks them."""
    build = ROOT / "build"
    unpacked = [build / "prometheus" / "usr" / "bin", build / "nginx" / "usr" / "sbin"]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, unpacked)]))
