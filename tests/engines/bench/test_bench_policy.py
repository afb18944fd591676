"""The command `bench_policy`, on the tiny networks."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.daemon import start_scripted_daemon
from tests.support.fidelity import WithoutTrace, backend, network, tiny_model
from tests.support.reference_server import ReferenceServer
from vlad_configs.errors import ConfigError, EngineError
from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.base import Backend, BackendOptions, InferenceResult
from vlad_engines.backends.registry import create_backend
from vlad_engines.bench import cli, runner
from vlad_engines.bench.case import RequestShape, model_inputs
from vlad_engines.bench.device import file_slug
from vlad_engines.bench.engine_mode import measure_engine, repeat
from vlad_engines.bench.loopback import measure_loopback
from vlad_engines.bench.plot import draw
from vlad_engines.bench.request_path import PARTS
from vlad_engines.bench.results import read_results
from vlad_engines.bench.row import STAGES, Samples, measured
from vlad_engines.processing.model_inputs import ModelInputs

ROW_KEYS = {
    *("gpu", "model", "cameras", "prompt_tokens", "chunk", "steps", "batch", "backend", "precision"),
    *("gpu_ms", "stages_ms", "wall_ms", "requests_per_s", "memory_gib", "commit", "command"),
}


def args(**options: Any) -> cli.Args:
    defaults = {"random_weights": "pi05_dummy", "device": "cpu", "warm_up": 1, "repetitions": 3}
    return cli.Args(**{**defaults, **options})


def test_figures_are_printed_written_and_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        "--random-weights pi05_dummy,pi0_dummy --device cpu --backend pytorch,pytorch:bf16 "
        "--prompt-tokens 12 --cameras 1 --chunk 7 --num-steps 2 --warm-up 1 --repetitions 3 "
        "--name tiny --plot tiny.png --commit abc123"
    )
    monkeypatch.setattr(sys, "argv", ["bench_policy", *line.split()])
    cli.main()
    (path,) = (tmp_path / "docs" / "results").iterdir()
    assert path.name.endswith("-cpu-tiny.json")
    content = json.loads(path.read_text())
    assert [(row["model"], row["precision"]) for row in content["rows"]] == [
        ("pi05_dummy", "fp32"),
        ("pi05_dummy", "bf16"),
        ("pi0_dummy", "fp32"),
        ("pi0_dummy", "bf16"),
    ]
    for row in content["rows"]:
        assert set(row) >= ROW_KEYS
        assert (row["cameras"], row["prompt_tokens"], row["chunk"], row["steps"]) == (1, 12, 7, 2)
        assert 0 < row["gpu_ms"]["p50"] <= row["gpu_ms"]["p90"] <= row["gpu_ms"]["p99"]
        assert set(row["stages_ms"]) == set(STAGES)
        assert row["wall_ms"] >= row["gpu_ms"]["p50"]
        assert row["commit"] == "abc123"
        assert row["command"] == f"bench_policy {line}"
        assert row["repetitions"] == 3
    assert content["rows"][0]["speedup"] == content["rows"][2]["speedup"] == 1.0
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert str(path.relative_to(tmp_path)) in capsys.readouterr().out
    assert read_results(path).to_json() == content


def test_pruned_rows_are_held_against_the_unpruned_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    line = (
        "--random-weights pi05_dummy --device cpu --keep-tokens all,64,24 --pruning-mode union --cameras 1 "
        f"--num-steps 1 --warm-up 0 --repetitions 1 --json {tmp_path}/pruned.json"
    )
    monkeypatch.setattr(sys, "argv", ["bench_policy", *line.split()])
    asked: list[TokenPruning | None] = []

    def create(name: str, model: ModelConfig, weights: Any, options: BackendOptions) -> Backend:
        asked.append(options.pruning)
        return create_backend(name, model, weights, options)

    monkeypatch.setattr(runner, "create_backend", create)
    cli.main()
    assert asked == [None, TokenPruning(64, mode="union"), TokenPruning(24, mode="union")]
    rows = read_results(tmp_path / "pruned.json").rows
    kept = [None if row.pruning is None else row.pruning["keep_tokens"] for row in rows]
    assert kept == [None, 64, 24]
    assert {row.pruning["mode"] for row in rows if row.pruning is not None} == {"union"}
    assert len({row.case for row in rows}) == 1
    assert rows[0].speedup == 1.0
    assert [line.split()[3] for line in capsys.readouterr().out.splitlines()[1:4]] == ["all", "64", "24"]


def test_policy_mode_prunes_too() -> None:
    options = {"mode": ("policy",), "keep_tokens": "24", "num_steps": 1, "warm_up": 0, "repetitions": 1}
    (row,) = cli.run(args(**options), "bench_policy").rows
    assert row.pruning == TokenPruning(24).to_json()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_tokens": "all,0"}, "takes 'all' and numbers of 1 and more"),
        ({"keep_tokens": "half"}, "takes 'all' and numbers of 1 and more"),
        ({"pruning_mode": "union"}, "need a number in --keep-tokens"),
        ({"pruning_positions": "compact"}, "need a number in --keep-tokens"),
    ],
)
def test_prunings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.make_plan(args(**options))


def test_policy_mode_includes_the_processing(tmp_path: pathlib.Path) -> None:
    results = cli.run(args(mode=("policy",), prompt_tokens=9, num_steps=2), "bench_policy")
    (row,) = results.rows
    assert (row.mode, row.cameras, row.prompt_tokens, row.chunk) == ("policy", 2, 9, 10)
    assert row.wall_ms > row.gpu_ms["p50"]
    assert row.path_ms is None


def test_loopback_mode_runs_a_real_daemon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    # Of a single request, the parts add up to the wall time; medians of several need not.
    options = {"mode": ("loopback",), "num_steps": 1, "prompt_tokens": 9, "repetitions": 1}
    results = cli.run(args(**options), "bench_policy")
    (row,) = results.rows
    assert (row.mode, row.batch, row.prompt_tokens) == ("loopback", 1, 9)
    assert row.wall_ms > row.gpu_ms["p50"] > 0
    assert row.start_s > 0.1
    assert row.path_ms is not None
    assert all(row.path_ms[part] > 0 for part in PARTS)
    assert row.path_ms["gpu"] == row.gpu_ms["p50"]
    assert sum(row.path_ms.values()) == pytest.approx(row.wall_ms, abs=1e-4 * len(PARTS))
    assert f"\n# path: client {row.path_ms['client']:.3f}, decode " in capsys.readouterr().out


@pytest.mark.parametrize("server_timing", [{}, {"server_timing": {"infer_ms": 4.0, "prev_total_ms": 9.0}}])
def test_a_server_that_does_not_tell_is_measured_without_a_path(server_timing: dict[str, Any]) -> None:
    def policy(observation: dict[str, Any]) -> dict[str, Any]:
        return {"policy_timing": {f"{stage}_ms": 1.0 for stage in STAGES}, **server_timing}

    with ReferenceServer(policy) as server:
        samples = measure_loopback(server.port, {"prompt": "go"}, warm_up=0, repetitions=2)
    assert measured(samples)["wall_ms"] > 0
    assert measured(samples)["path_ms"] is None


def test_loopback_mode_without_the_client_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install vlad-client"):
        measure_loopback(1, {}, warm_up=0, repetitions=1)


def test_a_robot_that_gets_no_answer_says_why() -> None:
    with (
        start_scripted_daemon() as daemon,
        pytest.raises(EngineError, match="no answer: invalid observation: key"),
    ):
        measure_loopback(daemon.port, {"prompt": "go"}, warm_up=0, repetitions=1)


def test_a_daemon_that_cannot_start_says_why() -> None:
    with pytest.raises(ConfigError, match="unknown random model"):
        cli.run(args(random_weights="pi9", mode=("loopback",)), "bench_policy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "demo"}, "either --random-weights or --checkpoint"),
        ({"random_weights": None}, "either --random-weights or --checkpoint"),
        ({"random_weights": "pi05_dummy,"}, "single commas"),
        ({"batch": "1,x"}, "--batch"),
        ({"batch": "0"}, "--batch"),
        ({"batch": "2", "mode": ("policy",)}, "--batch goes with --mode engine"),
        ({"chunk": 5, "mode": ("policy",)}, "--chunk goes with --mode engine"),
        ({"chunk": 5, "random_weights": None, "checkpoint": "demo"}, "--chunk goes with --random-weights"),
        ({"cameras": 4}, "--cameras"),
        ({"prompt_tokens": 500}, "max_token_len 200"),
        ({"prompt_tokens": 2, "mode": ("policy",)}, "the shortest one has"),
        ({"backend": "warp"}, "unknown backend 'warp'"),
        ({"env": "MARS"}, "unknown environment 'MARS'"),
        ({"repetitions": 0}, "repetitions"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.run(args(**options), "bench_policy")


def test_a_backend_without_batches_is_left_out_with_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    results = cli.run(args(batch="1,4", num_steps=1), "bench_policy")
    assert [row.batch for row in results.rows] == [1]
    assert "runs no batches; 4 is left out" in capsys.readouterr().out


class _Batching(WithoutTrace):
    sizes: list[int]

    def infer_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[npt.NDArray[np.float32]]
    ) -> list[InferenceResult]:
        self.sizes.append(len(inputs))
        assert len({sample.images.tobytes() for sample in inputs}) == len(inputs) == len(noise)
        return [self.infer(*request) for request in zip(inputs, noise, strict=True)]


def test_a_batch_counts_as_that_many_requests() -> None:
    batching = _Batching(backend(network("pi05", "fp32"), "fp32"))
    batching.sizes = []
    samples = measure_engine(
        batching, tiny_model("pi05"), RequestShape(1, 5), batch=2, warm_up=1, repetitions=2
    )
    assert batching.sizes == [2, 2, 2]
    assert samples.requests == 4
    assert len(samples.wall) == 2


def test_warm_up_is_not_measured() -> None:
    calls = iter([9.0, 9.0, 1.0, 2.0, 3.0])
    samples = repeat(lambda: dict.fromkeys(STAGES, next(calls)), requests_per_run=1, warm_up=2, repetitions=3)
    assert samples.stages["prefix"] == [1.0, 2.0, 3.0]


def test_percentiles_are_of_whole_requests_not_sums_of_percentiles() -> None:
    swapping = Samples(
        stages={"vision": [1.0, 3.0], "prefix": [3.0, 1.0], "denoise": [0.0, 0.0]},
        wall=[4.0, 4.0],
        elapsed=8.0,
        requests=2,
    )
    fields = measured(swapping)
    assert fields["gpu_ms"] == {"p50": 4000.0, "p90": 4000.0, "p99": 4000.0}
    assert fields["requests_per_s"] == 0.25


def test_inputs_have_the_asked_shape() -> None:
    inputs = model_inputs(tiny_model("pi05"), RequestShape(3, 17), seed=0)
    assert inputs.images.shape == (3, 224, 224, 3)
    assert int(inputs.token_mask.sum()) == 17
    assert inputs.tokens[17:].max() == 0


def test_file_names_come_from_product_names() -> None:
    assert file_slug("NVIDIA H200") == "h200"
    assert file_slug("NVIDIA GeForce RTX 4090") == "geforce-rtx-4090"
    assert file_slug("cpu") == "cpu"


def test_results_of_before_the_path_was_measured_still_load() -> None:
    path = pathlib.Path(__file__).resolve().parents[3] / "docs/results/2026-11-21-nvidia-h200-loopback.json"
    (row, *_) = read_results(path).rows
    assert (row.mode, row.path_ms) == ("loopback", None)


def test_other_json_is_no_results_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"rows": [{}]}')
    with pytest.raises(ConfigError, match=r"other\.json is no results file"):
        read_results(path)


def test_the_plot_shows_floors_and_modes(tmp_path: pathlib.Path) -> None:
    results = cli.run(args(num_steps=1), "bench_policy")
    (row,) = results.rows
    content = row.to_json()
    rows = [
        type(row)(**{**content, "floor_ms": {"vision": 0.1, "prefix": 0.2, "denoise": 0.1, "total": 0.4}}),
        type(row)(**{**content, "mode": "loopback", "wall_ms": 2 * row.wall_ms}),
    ]
    draw(dataclasses.replace(results, rows=rows), tmp_path / "folder" / "plot.png")
    assert (tmp_path / "folder" / "plot.png").stat().st_size > 5000
