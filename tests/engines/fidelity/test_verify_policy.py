"""The command `verify_policy`."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys

import pytest

from vlad_configs import fidelity as thresholds
from vlad_configs.errors import ConfigError
from vlad_configs.fidelity import FIDELITY_THRESHOLDS
from vlad_engines.fidelity import cli


def run_main(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["verify_policy", *line.split()])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_reports_are_printed_and_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "report.json"
    line = "--random-weights pi0_dummy --env ALOHA --device cpu --backend pytorch:bf16,pytorch:fp32"
    assert run_main(monkeypatch, f"{line} --num-steps 2 --observations 1 --json {path}") == 0
    output = capsys.readouterr().out
    assert output.count("passed") == 2
    assert "p99 ratio" in output
    bf16, fp32 = json.loads(path.read_text())
    assert (bf16["precision"], fp32["precision"]) == ("bf16", "fp32")
    assert fp32["actions"]["final"]["p99"] < bf16["actions"]["final"]["p99"] < 0.06


def test_exit_code_is_1_below_the_thresholds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = dataclasses.replace(FIDELITY_THRESHOLDS["bf16"], component_cosine=1.0)
    monkeypatch.setattr(thresholds, "FIDELITY_THRESHOLDS", {"bf16": strict})
    line = "--random-weights pi05_dummy --device cpu --precision bf16 --num-steps 1 --observations 1"
    assert run_main(monkeypatch, line) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "either --checkpoint or --random-weights"),
        ("--checkpoint demo --random-weights pi05_dummy", "either --checkpoint or --random-weights"),
        ("--checkpoint demo --env MARS", "unknown environment 'MARS'"),
        ("--random-weights pi7", "unknown random model 'pi7'"),
        ("--checkpoint demo --backend warp", "unknown backend 'warp'"),
        ("--checkpoint demo --backend pytorch:", "NAME or NAME:PRECISION"),
        ("--checkpoint demo --observations 0", "at least 1"),
        ("--checkpoint demo --batch 0", "--batch"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    assert run_main(monkeypatch, f"{line} --device cpu") == 2
    assert message in capsys.readouterr().err


def test_a_precision_without_thresholds_is_refused() -> None:
    with pytest.raises(ConfigError, match="int4"):
        cli.run(cli.Args(random_weights="pi05_dummy", precision="int4", device="cpu", observations="1"))
