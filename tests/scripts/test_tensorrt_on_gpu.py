"""The script that measures engines on a GPU, with stand-ins for the GPU and TensorRT."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import pathlib
from typing import Any

import pytest

from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.tiny_networks import tiny_config
from vlad_engines.backends.tensorrt import api, cuda_device

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "tensorrt_on_gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("tensorrt_on_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    device = HostDevice()
    monkeypatch.setattr(module, "network_config", lambda args: tiny_config(args.family))
    monkeypatch.setattr(api, "load_tensorrt", lambda: api.TensorRt(make_tensorrt("8.6.0", device)))
    monkeypatch.setattr(cuda_device, "open_device", lambda name: device)
    return module


def run(script: Any, folder: pathlib.Path, *options: str) -> int:
    return step(script, "run", folder, "--requests", "3", *options)


def step(script: Any, name: str, folder: pathlib.Path, *options: str) -> int:
    json_file = str(folder / f"{name}.json")
    code: int = script.main([name, str(folder), str(folder / "engines"), "--json", json_file, *options])
    return code


def test_both_steps_end_with_a_result(script: Any, tmp_path: pathlib.Path) -> None:
    assert script.main(["export", str(tmp_path), "--device", "cpu", "--num-steps", "3"]) == 0
    assert run(script, tmp_path) == 0
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["repeatable"]
    assert result["fidelity"].keys() >= {"vision_tokens", "prefix_keys", "x_t"}
    assert all(entry["cosine"] > 0.99999 for entry in result["fidelity"].values())
    assert result["engines"].keys() == {"vision", "prefix", "denoise"}
    assert result["starts"].keys() == {"first", "second", "without graphs"}
    assert json.loads((tmp_path / "prefix-layers.json").read_text()) == {"Layers": []}
    assert result["latency_ms"]["second"]["wall"]["p50"] > 0


def test_graphs_in_fp8_bring_their_calibration(script: Any, tmp_path: pathlib.Path) -> None:
    options = ("--device", "cpu", "--num-steps", "1", "--precision", "fp8")
    assert script.main(["export", str(tmp_path), *options]) == 0
    assert script.read_bundle(tmp_path).calibration is not None
    parts = script.backend_parts(
        argparse.Namespace(
            folder=tmp_path, engines=tmp_path / "engines", precision="fp8", device="cuda", level="0"
        ),
        2,
    )
    assert parts[1].precision == "fp8"


def test_engines_that_compute_something_else_fail(
    script: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert script.main(["export", str(tmp_path), "--device", "cpu", "--num-steps", "3"]) == 0
    (inputs, noise, trace), *_ = script.read_cases(tmp_path)
    other = dataclasses.replace(trace, prefix_keys=trace.prefix_keys[::-1])
    monkeypatch.setattr(script, "read_cases", lambda folder: [(inputs, noise, other)])
    assert run(script, tmp_path) == 1


def test_overlapped_requests_give_the_chunks_of_lone_ones(script: Any, tmp_path: pathlib.Path) -> None:
    assert script.main(["export", str(tmp_path), "--device", "cpu", "--num-steps", "3"]) == 0
    levels = "vision=0,prefix=0,denoise=2"
    assert step(script, "overlap", tmp_path, "--requests", "8", "--level", levels, "--delay-mib", "1") == 0
    result = json.loads((tmp_path / "overlap.json").read_text())
    assert [(row["backend"], row["in_flight"]) for row in result["rows"]] == [
        ("tensorrt", 1),
        *(("tensorrt_pipelined", count) for count in (1, 2, 3)),
        ("tensorrt", 1),
        ("tensorrt_pipelined", 2),
    ]
    assert all(row["same_chunks"] for row in result["rows"])
    assert result["wrong_chunks_at_random_times"] == result["wrong_chunks_with_delayed_stages"] == 0
    assert result["throughput_2_in_flight"] > 0
    assert len(set(result["calls"].values())) == 1
    assert step(script, "start", tmp_path, "--level", levels, "--most-seconds", "600") == 0
    started = json.loads((tmp_path / "start.json").read_text())
    assert started["host_mib"]["VmRSS"] > 0
    assert started["first_request_ms"] > 0
    assert step(script, "start", tmp_path, "--level", levels, "--most-seconds", "0") == 1
