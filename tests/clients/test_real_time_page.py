"""docs/real-time.md tells the truth: its code compiles, its options, modes and figures exist."""

from __future__ import annotations

import ast
import dataclasses
import json
import pathlib
import re

import pytest

import vlad_client
from vlad_client import RealTimeConfig, RtcOptions, real_time_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "real-time.md").read_text()
README = (ROOT / "clients" / "README.md").read_text()


def _first_cells(title: str) -> list[str]:
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return [name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in _code(row)]


def _code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("page", [PAGE, README], ids=["real-time", "readme"])
def test_code_compiles_and_imports_what_exists(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "vlad_client":
                assert {alias.name for alias in node.names} <= set(vlad_client.__all__)


def test_late_and_guidance_modes_are_all_of_them() -> None:
    assert _first_cells("When a chunk is late") == ["late", *real_time_config.LATE_MODES]
    assert _first_cells("Modes") == list(real_time_config.RTC_MODES)


def test_what_can_be_tuned_exists() -> None:
    options = {field.name for kind in (RealTimeConfig, RtcOptions) for field in dataclasses.fields(kind)}
    assert set(_first_cells("Tuning")) <= options


def test_defaults_are_the_real_ones() -> None:
    config = RealTimeConfig(control_hz=50)
    assert (
        f"a percentile ({config.latency_percentile:g}) of the latest {config.latency_window} latencies"
        in PAGE
    )
    assert f"`request_timeout_s` ({config.request_timeout_s:g} s)" in PAGE
    assert f"`margin_steps` ({config.margin_steps})" in PAGE
    assert f"`slowest` ({real_time_config.DEFAULT_SLOWEST})" in PAGE


def test_the_image_table_is_that_of_the_result() -> None:
    result = json.loads((ROOT / "docs" / "results" / "2026-11-21-cpu-image-encoding.json").read_text())
    rows = {row["images"]: row for row in result["rows"]}
    names = {"PNG": "png", "JPEG, quality 90 (default)": "jpeg q90", "JPEG, quality 80": "jpeg q80"}
    for shown, name in names.items():
        cells = re.search(rf"^\| {re.escape(shown)} \|(.*)\|$", PAGE, re.MULTILINE)
        assert cells is not None
        size, *_, rms, below_99, largest = (cell.strip() for cell in cells[1].split("|"))
        assert float(size) == pytest.approx(rows[name]["kib_per_image"], abs=0.05)
        measured = (rows[name]["action_rms"], rows[name]["action_p99"], rows[name]["action_max"])
        assert [float(cell) for cell in (rms, below_99, largest)] == pytest.approx(measured, abs=6e-5)
