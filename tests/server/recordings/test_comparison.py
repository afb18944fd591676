"""Comparing runs: figures worked out by hand, requests matched by number, a picture that is there."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from tests.support.recordings import exchange, write_recording
from vlad_configs.errors import ConfigError
from vlad_server.recordings.compare_cli import Args, main, run
from vlad_server.recordings.comparison import compare
from vlad_server.recordings.run_file import Run, load_run


def _run(numbers: list[int], actions: object, **policy: str) -> Run:
    return Run("somewhere", policy, np.array(numbers), np.array(actions, np.float64))


def test_figures_are_those_worked_out_by_hand() -> None:
    first = _run([0, 1], [[[0.0, 5.0]], [[10.0, 5.0]]])
    second = _run([0, 1], [[[0.5, 5.0]], [[9.0, 5.0]]])
    comparison = compare(first, second)
    moving, still = comparison.per_joint()
    assert moving["mean"] == 0.75
    assert moving["max"] == 1.0
    assert moving["max_over_span"] == pytest.approx(1.0 / 9.8)
    assert still == {"mean": 0.0, "p99": 0.0, "max": 0.0, "span": 0.0, "max_over_span": 0.0}
    np.testing.assert_array_equal(comparison.per_step(), [[0.75, 0.0]])
    assert comparison.worst() == (1, 0, 0)


def test_requests_are_matched_by_number() -> None:
    first = _run([1, 2, 3], [[[1.0]], [[2.0]], [[3.0]]])
    second = _run([3, 4, 1], [[[3.0]], [[9.0]], [[1.0]]])
    comparison = compare(first, second)
    assert comparison.first.numbers.tolist() == [1, 3]
    assert (comparison.only_first, comparison.only_second) == (1, 1)
    assert not comparison.difference.any()
    assert "bit for bit" in comparison.table()


def test_runs_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1x2.*1x1"):
        compare(_run([0], [[[1.0, 2.0]]]), _run([0], [[[1.0]]]))
    with pytest.raises(ConfigError, match="no request in common"):
        compare(_run([0], [[[1.0]]]), _run([1], [[[1.0]]]))


def test_a_saved_run_comes_back(tmp_path: pathlib.Path) -> None:
    original = _run([4, 7], np.arange(6).reshape(2, 1, 3), backend="pytorch", precision="bf16")
    original.save(tmp_path / "run.npz")
    loaded = load_run(tmp_path / "run.npz")
    assert loaded.name == "pytorch bf16"
    np.testing.assert_array_equal(loaded.numbers, original.numbers)
    np.testing.assert_array_equal(loaded.actions, original.actions)
    (tmp_path / "other.npz").write_text("text")
    with pytest.raises(ConfigError, match="neither a recording"):
        load_run(tmp_path / "other.npz")


def test_the_command_writes_report_and_picture(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    (recording,) = write_recording(
        tmp_path, [exchange(number, actions=random.normal(size=(10, 7))) for number in range(4)]
    )
    recorded = load_run(recording)
    changed = recorded.actions.copy()
    changed[2, 5, 3] += 0.5
    Run("changed", {"backend": "other"}, recorded.numbers, changed).save(tmp_path / "changed.npz")
    args = Args(recording, tmp_path / "changed.npz", plot=tmp_path / "a.png", json=tmp_path / "a.json")
    run(args)
    assert "largest at request 2, step 5, joint 3" in capsys.readouterr().out
    report = json.loads((tmp_path / "a.json").read_text())
    assert report["worst"] == {"request": 2, "step": 5, "joint": 3}
    assert report["per_joint"][3]["max"] == pytest.approx(0.5)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 1000

    for tolerance, code in (("0.01", 1), ("10", 0)):
        arguments = ["compare_runs", str(recording), str(tmp_path / "changed.npz"), "--tolerance", tolerance]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
