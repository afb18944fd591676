"""Dashboards: well-formed, provisioned as Grafana reads them, every query answered by a real Prometheus."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import pathlib
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support.daemon import start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.promql import PROMETHEUS_OWN, ROOT, binary, exported_names, metric_names
from tests.support.robot import connect_robot
from vlad_server.metrics import REQUEST_BUCKETS

FOLDER = ROOT / "deploy" / "grafana"
FILES = sorted((FOLDER / "dashboards").glob("*.json"))

PANEL_TYPES = {"row", "stat", "timeseries", "heatmap", "table"}
UNITS = {"none", "s", "reqps", "percentunit", "Bps", "bytes"}
MISTAKES = "Likely mistakes in observations"
MAY_BE_EMPTY = {"Firing alerts", "Disconnects by close code", "Round trip to clients", MISTAKES}
"""Panels that show nothing where all is well."""


MEMORY = {"device": "cuda:0", "used_bytes": 5 << 30, "total_bytes": 80 << 30, "reserved_bytes": 4 << 30}
ENGINE = {"lookup": "miss", "build_s": 90.0, "load_s": 2.0, "plan_bytes": 1 << 30}
UNTYPED = {"/annotations/list/titleFormat", "/annotations/list/step", "/templating/list/definition"}
"""Keys that Grafana writes and reads for this data source, but that are not among its common types."""


def _dashboard(file: pathlib.Path) -> dict[str, Any]:
    dashboard: dict[str, Any] = json.loads(file.read_text())
    return dashboard


def _panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def _queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in _panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_are_whole_and_do_not_overlap(file: pathlib.Path) -> None:
    dashboard = _dashboard(file)
    assert dashboard["uid"] == file.stem
    assert dashboard["id"] is None, "an exported id would collide with another dashboard's"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        assert panel["type"] in PANEL_TYPES
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in taken, f"{panel['title']} lies on {taken.get(cell)}"
            taken[cell] = panel["title"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_explain_themselves(file: pathlib.Path) -> None:
    for panel in _panels(_dashboard(file)):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        if panel["type"] in ("stat", "timeseries"):
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["unit"] in UNITS, panel["title"]
            assert defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_query_names_metrics_that_the_daemon_exports(file: pathlib.Path) -> None:
    known = exported_names() | PROMETHEUS_OWN
    for title, query in _queries(_dashboard(file)):
        assert metric_names(query) <= known, f"{title} reads {sorted(metric_names(query) - known)}"
        if "_bucket" in query and "histogram_quantile" in query:
            assert re.search(r"sum by \([\w, ]*\ble\)", query), f"{title} does not keep le"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_control_period_is_a_bound_of_the_request_histogram(file: pathlib.Path) -> None:
    (period,) = (item for item in _dashboard(file)["templating"]["list"] if item["name"] == "period")
    values = [choice.split(" : ")[1] for choice in period["query"].split(", ")]
    assert values == [option["value"] for option in period["options"]]
    assert {float(value) for value in values} <= set(REQUEST_BUCKETS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_grafanas_own_types_know_every_key(file: pathlib.Path) -> None:
    """What Grafana's published types do not know is dropped when a dashboard goes through them."""
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="needs Python 3.11")
    encoder = importlib.import_module("grafana_foundation_sdk.cog.encoder")
    dashboard = _dashboard(file)
    returned = json.loads(encoder.JSONEncoder().encode(models.Dashboard.from_json(dashboard)))
    assert set(_lost(dashboard, returned)) == UNTYPED


def test_a_key_that_grafana_does_not_know_is_noticed() -> None:
    assert set(_lost({"panels": [{"type": "stat", "tittle": "x"}]}, {"panels": [{"type": "stat"}]})) == {
        "/panels/tittle"
    }


def _lost(given: Any, returned: Any, path: str = "") -> Iterator[str]:
    if isinstance(given, dict):
        for key, value in given.items():
            if key in returned:
                yield from _lost(value, returned[key], f"{path}/{key}")
            elif value not in (None, [], {}):
                yield f"{path}/{key}"
    elif isinstance(given, list):
        for item, other in itertools.zip_longest(given, returned):
            yield from _lost(item, other, path)
    elif given != returned:
        yield f"{path}: {given!r} became {returned!r}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_dashboards_use_the_provisioned_datasource(file: pathlib.Path) -> None:
    provisioning = FOLDER / "provisioning"
    (datasource,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    scrape = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["global"]
    assert datasource["jsonData"]["timeInterval"] == scrape["scrape_interval"]
    dashboard = _dashboard(file)
    (variable,) = (item for item in dashboard["templating"]["list"] if item["type"] == "datasource")
    assert variable["current"]["value"] == datasource["uid"]
    reference = {"type": "prometheus", "uid": "${" + variable["name"] + "}"}
    for panel in _panels(dashboard):
        assert panel["datasource"] == reference
        assert all(target["datasource"] == reference for target in panel["targets"])


def test_the_dashboards_folder_is_where_compose_mounts_it() -> None:
    (provider,) = yaml.safe_load((FOLDER / "provisioning" / "dashboards" / "vlad.yml").read_text())[
        "providers"
    ]
    volumes = yaml.safe_load((ROOT / "compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in volumes
    assert FILES


@pytest.mark.slow
@pytest.mark.skipif(binary("prometheus") is None, reason="no prometheus; try `make prometheus`")
def test_a_real_prometheus_answers_every_query(tmp_path: pathlib.Path) -> None:
    script = {"continues": True, "memory": MEMORY, "engines": dict.fromkeys(("vision",), ENGINE)}
    with start_scripted_daemon(infer_s=0.005, **script) as daemon:
        daemon.wait_ready()
        with _prometheus(tmp_path, daemon.metrics_port) as base, connect_robot(daemon.port) as robot:
            end = time.monotonic() + 12
            robot.infer({**libero_observation(), "vlad/session": "a"})
            rtc = {"prev_chunk_id": 0, "executed": 0, "delay": 2}
            while time.monotonic() < end:
                options = {"vlad/session": "a", "vlad/control_hz": 20.0, "vlad/rtc": rtc}
                rtc["prev_chunk_id"] = robot.infer({**libero_observation(), **options})["chunk_id"]
            for file in FILES:
                for title, query in _queries(_dashboard(file)):
                    answer = _query(base, query)
                    assert answer["status"] == "success", f"{title}: {answer}"
                    values = [float(series["value"][1]) for series in answer["data"]["result"]]
                    optional = title in MAY_BE_EMPTY or title.startswith("annotation")
                    assert values or optional, f"{title} shows nothing: {query}"
            (inside,) = _query(base, _expression("Within the control period"))["data"]["result"]
            assert 0.9 < float(inside["value"][1]) <= 1.0


def _expression(title: str) -> str:
    return next(query for file in FILES for name, query in _queries(_dashboard(file)) if name == title)


def _query(base: str, query: str) -> dict[str, Any]:
    variables = {
        "$instance": ".*",
        "$period": "0.05",
        "$__rate_interval": "8s",
        "$__range": "1m",
        "$__interval": "5s",
    }
    for name in sorted(variables, key=len, reverse=True):
        query = query.replace(name, variables[name])
    with urllib.request.urlopen(
        f"{base}/api/v1/query?query={urllib.parse.quote(query)}", timeout=10
    ) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


@contextlib.contextmanager
def _prometheus(folder: pathlib.Path, metrics_port: int) -> Iterator[str]:
    """A Prometheus with our configuration that scrapes `metrics_port` each second; yields its base URL."""
    config = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    config = config.replace("127.0.0.1:9100", f"127.0.0.1:{metrics_port}").replace("5s", "1s")
    (folder / "prometheus.yml").write_text(config)
    (folder / "rules.yml").write_text((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(binary("prometheus")), *options], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while not _is_ready(f"http://{address}"):
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


def _is_ready(base: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base}/-/ready", timeout=2):
            return True
    except OSError:
        return False
