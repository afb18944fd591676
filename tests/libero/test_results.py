"""A run can be cut off and go on; runs of different things are never mixed."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from vlad_libero.errors import LiberoError, ResultsError
from vlad_libero.evaluation.compare_cli import main as compare_main
from vlad_libero.evaluation.protocol import Protocol
from vlad_libero.evaluation.results import (
    EPISODES_FILE,
    EpisodeLog,
    EpisodeResult,
    read_summary,
    summarise,
    write_summary,
)
from vlad_libero.evaluation.table import compare, table

PROTOCOL = Protocol(tasks=(0, 1), trials=2)
PROMPTS = {0: "pick this", 1: "pick that"}
RUN = {
    "backend": "pytorch",
    "precision": "fp32",
    "steps": 10,
    "variant": "lockstep",
    "command": "eval_libero",
}


def _result(task: int, trial: int, success: bool) -> EpisodeResult:
    return EpisodeResult(task, trial, success, 100, 20, wrong_object=False, infer_ms=5.0, seconds=2.0)


def _results(*successes: bool) -> list[EpisodeResult]:
    return [_result(*key, success) for key, success in zip(PROTOCOL.episodes(), successes, strict=True)]


def _summary(*successes: bool, protocol: Protocol = PROTOCOL) -> dict[str, Any]:
    return summarise(protocol, _results(*successes), PROMPTS, RUN)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: pathlib.Path) -> None:
    log = EpisodeLog(tmp_path, {"seed": 7})
    log.add(_result(0, 0, True))
    log.add(_result(0, 1, False))
    with (tmp_path / EPISODES_FILE).open("a") as stream:
        stream.write('{"task": 1, "tri')
    again = EpisodeLog(tmp_path, {"seed": 7})
    assert sorted(again.results) == [(0, 0), (0, 1)]
    again.add(_result(1, 0, True))
    assert sorted(EpisodeLog(tmp_path, {"seed": 7}).results) == [(0, 0), (0, 1), (1, 0)]


def test_a_run_of_something_else_is_not_continued(tmp_path: pathlib.Path) -> None:
    EpisodeLog(tmp_path, {"seed": 7, "backend": "pytorch"})
    with pytest.raises(ResultsError, match="another run \\(backend differ\\)"):
        EpisodeLog(tmp_path, {"seed": 7, "backend": "triton"})


def test_the_summary_has_the_fields_of_the_table(tmp_path: pathlib.Path) -> None:
    summary = _summary(True, True, False, True)
    assert {"backend", "precision", "steps", "variant", "episodes", "success_rate"} <= set(summary)
    assert {"interval", "per_task", "command"} <= set(summary)
    assert (summary["episodes"], summary["success_rate"]) == (4, 0.75)
    assert [row["success_rate"] for row in summary["per_task"]] == [1.0, 0.5]
    write_summary(tmp_path / "summary.json", summary)
    assert read_summary(tmp_path) == json.loads(json.dumps(summary))
    assert "3/4" in table(summary)
    assert "pick that" in table(summary)


def test_runs_are_compared_episode_by_episode() -> None:
    comparison = compare(_summary(True, True, False, True), _summary(True, False, True, True))
    assert comparison["episodes"] == 4
    assert (comparison["only_first"], comparison["only_second"]) == (1, 1)
    assert comparison["p_value"] == 1.0


def test_runs_from_other_scenes_cannot_be_paired() -> None:
    other = Protocol(tasks=(0, 1), trials=2, seed=8)
    with pytest.raises(ResultsError, match="seed differ"):
        compare(_summary(True, True, True, True), _summary(True, True, True, True, protocol=other))


def test_the_command_says_what_it_cannot_compare(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, _summary(True, True, False, True))
    assert compare_main([str(path), str(tmp_path)]) == 0
    assert "p = 1" in capsys.readouterr().out
    assert compare_main([str(path), str(tmp_path / "nothing.json")]) == 2
    assert "nothing.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"suite": "libero_moon"}, "unknown suite 'libero_moon'"),
        ({"tasks": (3, 1)}, "ascending order"),
        ({"tasks": ()}, "ascending order"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"replan_steps": 0}, "replan_steps must be at least 1"),
    ],
)
def test_a_protocol_that_cannot_be_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LiberoError, match=message):
        Protocol(**options)


def test_a_protocol_survives_json() -> None:
    content = json.loads(json.dumps(PROTOCOL.to_json()))
    assert Protocol.from_json(content) == PROTOCOL
    with pytest.raises(ResultsError, match="has the fields"):
        Protocol.from_json({**content, "colour": "blue"})
