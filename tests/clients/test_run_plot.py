"""Records of runs, and the command that draws them."""

from __future__ import annotations

import pathlib
import sys
import xml.etree.ElementTree
from typing import Any

import numpy as np
import pytest

from vlad_client import RealTimeConfig, RunRecord, RunRecorder
from vlad_client.chunk_schedule import ChunkSchedule
from vlad_client.run_plot import draw_run, main, summary


def _run(max_steps: int = 1000) -> RunRecorder:
    """One idle step, 3 actions, a chunk that comes 2 steps late, 2 more actions, 2 steps of holding."""
    schedule, recorder = ChunkSchedule(RealTimeConfig(control_hz=10.0)), RunRecorder(max_steps)
    now = 100.0

    def tick(steps: int) -> None:
        nonlocal now
        for _ in range(steps):
            recorder.add_step(now, schedule.step())
            now += 0.1

    def chunk(number: int, value: float) -> None:
        actions = np.full((4, 2), value)
        splice = schedule.accept(number, actions, now - 0.05)
        assert splice is not None
        recorder.add_chunk(now - 0.05, splice, actions)

    schedule.start_episode(now)
    schedule.begin_request(now, 0)
    tick(1)
    chunk(0, 1.0)
    tick(1)
    schedule.begin_request(now, 1)
    tick(2)
    chunk(1, 4.0)
    tick(4)
    return recorder


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "deep" / "run.npz"
    _run().record(10.0).save(path)
    return path


def test_a_record_tells_what_was_executed_and_where_it_came_from(saved: pathlib.Path) -> None:
    record = RunRecord.load(saved)
    assert record.control_hz == 10
    np.testing.assert_allclose(record.step_time, np.arange(8) / 10, atol=1e-9)
    assert record.step_kind.tolist() == [0, 1, 1, 1, 1, 1, 2, 2]
    assert record.step_index.tolist() == [0, 0, 1, 2, 3, 4, 5, 5]
    assert record.step_request.tolist() == [-1, 0, 0, 0, 1, 1, -1, -1]
    assert np.isnan(record.step_action[0]).all()
    assert record.step_action[1:, 0].tolist() == [1, 1, 1, 4, 4, 4, 4]
    assert record.chunk_anchor.tolist() == [0, 1]
    assert record.chunk_index.tolist() == [0, 3]
    np.testing.assert_allclose(record.chunk_requested_at, [0.0, 0.2], atol=1e-9)
    np.testing.assert_allclose(record.chunk_arrived_at, [0.05, 0.35], atol=1e-9)
    assert np.isnan(record.chunk_jump[0])
    assert record.chunk_jump[1] == pytest.approx(3 * 2**0.5)
    assert record.chunk(1).tolist() == [[4.0, 4.0]] * 4


def test_what_was_recorded_first_is_forgotten_first() -> None:
    record = _run(max_steps=3).record(10.0)
    assert record.step_index.tolist() == [4, 5, 5]
    assert record.step_time[0] == 0


def test_a_long_run_costs_no_more_memory_than_was_asked_for() -> None:
    schedule, recorder = ChunkSchedule(RealTimeConfig(control_hz=10.0)), RunRecorder(max_steps=10)
    schedule.start_episode(0.0)
    for number in range(100):
        schedule.begin_request(float(number), number)
        splice = schedule.accept(number, np.full((3, 2), number), number + 0.1)
        assert splice is not None
        recorder.add_chunk(number + 0.1, splice, np.full((3, 2), number))
        recorder.add_step(number + 0.2, schedule.step())
        recorder.add_step(number + 0.3, schedule.step())
    record = recorder.record(10.0)
    assert record.step_request.tolist() == [number for number in range(95, 100) for _ in range(2)]
    assert set(record.step_request) <= set(record.chunk_request)
    assert len(record.chunk_request) <= 10


def test_a_summary_counts(saved: pathlib.Path) -> None:
    assert summary(RunRecord.load(saved)) == (
        "5 actions at 10 Hz · 2 chunks · 2 steps held · delay 1 steps (median), 2 (longest) · "
        "jump at a boundary 4.24 (mean L2)"
    )


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_run_is_drawn(
    suffix: str, saved: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "plots" / f"run{suffix}"
    assert main([str(saved), "--out", str(out), "--columns", "1", "--span", "0,0.5", "--title", "mine"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    if suffix == ".png":
        assert out.read_bytes().startswith(b"\x89PNG")
    else:
        assert xml.etree.ElementTree.parse(out).getroot().tag.endswith("svg")


def test_a_run_without_chunks_and_an_empty_one(tmp_path: pathlib.Path) -> None:
    recorder = RunRecorder()
    schedule = ChunkSchedule(RealTimeConfig(control_hz=10.0))
    with pytest.raises(ValueError, match="no action to draw"):
        draw_run(recorder.record(10.0), tmp_path / "run.png")
    recorder.add_step(0.0, schedule.step())
    with pytest.raises(ValueError, match="no action to draw"):
        draw_run(recorder.record(10.0), tmp_path / "run.png")
    assert summary(recorder.record(10.0)) == "0 actions at 10 Hz · 0 chunks · 0 steps held"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--out", "run.pdf"], "plots are written as .png or .svg, not 'run.pdf'"),
        (["--columns", "2"], "the actions have columns 0 to 1, not 2"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(
    arguments: list[str], complaint: str, saved: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(saved), *arguments]) == 1
    assert capsys.readouterr().err == f"plot_run: {complaint}\n"


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_other_files_are_no_records(
    content: Any, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.npz"
    if content is None:
        np.savez(path, other=np.zeros(3))
    else:
        path.write_bytes(content)
    assert main([str(path), "--out", str(tmp_path / "run.png")]) == 1
    assert "is not the record of a run" in capsys.readouterr().err


def test_a_missing_matplotlib_names_the_extra(
    saved: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([str(saved)]) == 1
    assert "pip install 'vlad-client[plot]'" in capsys.readouterr().err
