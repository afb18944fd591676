from __future__ import annotations

import csv
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from vlad_client.latency_table import LatencyTable


def _reply(policy_ms: float, **server: float) -> dict[str, Any]:
    return {"actions": None, "policy_timing": {"infer_ms": policy_ms}, "server_timing": server}


@pytest.fixture
def calls() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).gamma(2.0, 20.0, size=(37, 3))


@pytest.fixture
def table(calls: np.ndarray[Any, Any]) -> LatencyTable:
    table = LatencyTable()
    for client, policy, server in calls:
        table.add(client, _reply(policy, infer_ms=server))
    return table


def test_statistics_are_those_of_numpy(table: LatencyTable, calls: np.ndarray[Any, Any]) -> None:
    statistics = table.statistics()
    assert list(statistics) == ["client_infer_ms", "policy_infer_ms", "server_infer_ms"]
    for column, row in enumerate(statistics.values()):
        values = calls[:, column]
        assert row["Mean"] == pytest.approx(values.mean())
        assert row["Std"] == pytest.approx(values.std())
        for percent in (25, 50, 75, 90, 95, 99):
            assert row[f"P{percent}"] == pytest.approx(np.percentile(values, percent))


def test_the_table_shows_sorted_rows_with_one_decimal(
    table: LatencyTable, calls: np.ndarray[Any, Any]
) -> None:
    title, header, *rows = table.render().splitlines()
    assert title == "Timing statistics of 37 calls"
    assert header.split() == ["ms", "Mean", "Std", "P25", "P50", "P75", "P90", "P95", "P99"]
    assert [row.split()[0] for row in rows] == ["client_infer_ms", "policy_infer_ms", "server_infer_ms"]
    assert rows[1].split()[1] == f"{calls[:, 1].mean():.1f}"
    assert len({len(line) for line in (header, *rows)}) == 1


def test_a_timing_that_some_replies_lack_counts_those_that_have_it(tmp_path: pathlib.Path) -> None:
    table = LatencyTable()
    table.add(1.0, _reply(1.0))
    table.add(2.0, _reply(2.0, prev_total_ms=8.0))
    assert table.statistics()["server_prev_total_ms"]["Mean"] == 8.0
    table.save(tmp_path / "timing.csv")
    with (tmp_path / "timing.csv").open() as file:
        assert [row["server_prev_total_ms"] for row in csv.DictReader(file)] == ["", "8.0"]


def test_a_reply_without_timings_leaves_what_the_client_saw() -> None:
    table = LatencyTable()
    table.add(4.0, {"actions": None})
    assert list(table.statistics()) == ["client_infer_ms"]


def test_files_hold_every_call(
    table: LatencyTable, calls: np.ndarray[Any, Any], tmp_path: pathlib.Path
) -> None:
    table.save(tmp_path / "new" / "timing.csv")
    with (tmp_path / "new" / "timing.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal([[float(cell) for cell in row.values()] for row in rows], calls)

    table.save(tmp_path / "timing.json")
    content = json.loads((tmp_path / "timing.json").read_text())
    assert [call["client_infer_ms"] for call in content["calls"]] == calls[:, 0].tolist()
    assert content["statistics"] == table.statistics()


def test_another_kind_of_file_is_refused(table: LatencyTable, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"written as \.csv or \.json, not 'timing\.parquet'"):
        table.save(tmp_path / "timing.parquet")
