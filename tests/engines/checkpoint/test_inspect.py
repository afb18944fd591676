from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.support.checkpoints import write_libero
from vlad_engines.checkpoint.demo import demo_checkpoint
from vlad_engines.checkpoint.inspect import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, capsys.readouterr().out


def test_a_good_checkpoint_is_told_in_full(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, str(write_libero(tmp_path)))
    assert code == 0
    for line in (
        "layout               openpi",
        "family               pi05",
        "action_horizon       6",
        "[config.json: model]",
        "prompt_template      text",
        "state quantile, actions quantile",
        f"tokenizer  {tmp_path / 'tokenizer.model'}",
        "state, 8 numbers",
        "F32 tensors",
        "this checkpoint can be served",
    ):
        assert line in text


def test_all_problems_are_told_at_once(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(write_libero(tmp_path) / "assets")
    (tmp_path / "tokenizer.model").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    config["model"]["vlm"]["mlp_dim"] = 99
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, text = run(capsys, str(tmp_path))
    assert code == 1
    assert "does not fit the pi05 model" in text
    assert "norm stats not found; looked in:" in text
    assert "tokenizer not found; looked in:" in text
    assert "this checkpoint cannot be served" in text


def test_the_report_is_also_json(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, str(write_libero(tmp_path, "pi0")), "--json", "--env", "LIBERO")
    report = json.loads(text)
    assert code == 0
    assert report["problems"] == []
    assert report["contract"]["family"] == {"value": "pi0", "source": "tensors: no time_mlp_in"}
    assert report["contract"]["delta_mask"]["value"] == [True] * 6 + [False]
    assert report["norm_stats"]["state"]["width"] == 8


def test_what_is_no_checkpoint_is_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, str(tmp_path))
    assert code == 1
    assert "is empty" in text
    code, text = run(capsys, str(tmp_path / "gone"), "--json")
    assert code == 1
    assert "does not exist" in json.loads(text)["problems"][0]


def test_a_wrong_environment_is_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, str(write_libero(tmp_path)), "--env", "DROID")
    assert code == 1
    assert "DROID contradicts 'pi05_libero'" in text


def test_a_random_model_is_told_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "random:pi05", "--env", "DROID")
    assert code == 0
    for line in (
        "weights    random",
        "parameters 3,",
        "config               pi05_droid",
        "norm stats  made up for random weights",
        "the weights are random",
    ):
        assert line in text
    code, text = run(capsys, "random:pi06")
    assert code == 1
    assert "unknown random model 'pi06': expected one of pi05, pi0" in text


def test_a_checkpoint_is_inspected_without_torch_and_says_random(tmp_path: pathlib.Path) -> None:
    program = (
        "import sys\n"
        "from vlad_engines.checkpoint.inspect import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path), "VLAD_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program, str(demo_checkpoint(tmp_path))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "weights    random" in result.stdout
    assert "the weights are random" in result.stdout
