"""A robot's computer without torch and onnx serves prebuilt engines, and only those that were checked."""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.daemon import Daemon, start_daemon
from tests.support.host_tensorrt import HostDevice, make_tensorrt
from tests.support.libero import libero_observation
from vlad_client.websocket_client_policy import WebsocketClientPolicy
from vlad_configs.errors import ConfigError
from vlad_engines.backends.tensorrt import build_cli
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.export import cli as export_cli
from vlad_engines.export.bundle import read_bundle
from vlad_engines.unified_policy import UnifiedPolicy

STEPS = 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
    """A cache folder with the demo, and `engines` that were built of it and checked."""
    with built_and_checked(tmp_path_factory.mktemp("cache"), "8.6.0", "fp32") as folder:
        yield folder


@contextlib.contextmanager
def built_and_checked(folder: pathlib.Path, version: str, precision: str) -> Iterator[pathlib.Path]:
    device = HostDevice(compute_capability="8.9")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAD_CACHE_DIR", str(folder))
        patch.setattr(build_cli, "load_tensorrt", lambda: TensorRt(make_tensorrt(version, device)))
        patch.setattr(build_cli, "open_device", lambda name: device)
        export = export_cli.Args(
            "demo", folder / "graphs", env="LIBERO", num_steps=STEPS, precision=precision
        )
        export_cli.run(export)
        build = build_cli.Args(str(folder / "graphs"), folder / "engines", cameras="2", precision=precision)
        report = build_cli.run(build)
        assert report is not None
        assert report.passed, report.table()
        yield folder


def robot(
    cache: pathlib.Path,
    engines: pathlib.Path,
    *args: str,
    backend: str = "tensorrt",
    version: str = "8.6.0",
) -> contextlib.AbstractContextManager[Daemon]:
    return start_daemon(
        *("--env", "LIBERO", "--checkpoint", "demo", "--num-steps", str(STEPS)),
        *("--backend", backend, "--engine-dir", str(engines), *args),
        module="tests.support.robot_daemon",
        env={"VLAD_CACHE_DIR": str(cache), "STAND_IN_TENSORRT": version},
    )


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_pipelined"])
def test_prebuilt_engines_are_served_without_torch_and_onnx(cache: pathlib.Path, backend: str) -> None:
    observation = libero_observation()
    expected = UnifiedPolicy("demo", num_denoising_steps=STEPS, device="cpu").infer(observation, seed=7)
    with robot(cache, cache / "engines", backend=backend) as daemon:
        daemon.wait_ready()
        client = WebsocketClientPolicy("127.0.0.1", daemon.port)
        for _ in range(2):
            reply = client.infer({**observation, "vlad/seed": 7})
            np.testing.assert_allclose(reply["actions"], expected["actions"], rtol=0, atol=1e-4)
        metadata = client.get_server_metadata()
        client.close()
        used, total = (
            daemon.metric(f"vlad_gpu_memory_{part}_bytes", gpu="cuda:0") for part in ("used", "total")
        )
        assert (used, total) == (3 << 30, HostDevice.total_bytes)
        assert daemon.metric("vlad_torch_memory_reserved_bytes", gpu="cuda:0") == 0
    assert metadata["precision"] == "fp32"
    assert metadata["fidelity"]["passed"]
    assert metadata["fidelity"]["remembered"]
    for component in metadata["components"].values():
        assert (component["engine"], component["version"]) == ("tensorrt", "TensorRT 8.6.0")


def test_engines_in_fp8_are_served_with_the_calibration_of_their_export(tmp_path: pathlib.Path) -> None:
    observation, version = libero_observation(), "11.4.0.106"
    with (
        built_and_checked(tmp_path, version, "fp8") as cache,
        robot(cache, cache / "engines", "--precision", "fp8", version=version) as daemon,
    ):
        daemon.wait_ready()
        client = WebsocketClientPolicy("127.0.0.1", daemon.port)
        reply = client.infer({**observation, "vlad/seed": 7})
        metadata = client.get_server_metadata()
        client.close()
    expected = UnifiedPolicy("demo", num_denoising_steps=STEPS, device="cpu").infer(observation, seed=7)
    difference = np.abs(reply["actions"] - expected["actions"])
    assert 0 < difference.max() < 0.1 * np.abs(expected["actions"]).max()
    precisions = {name: part["precision"] for name, part in metadata["components"].items()}
    assert precisions == {"vision": "bf16", "prefix": "fp8", "denoise": "bf16"}
    assert metadata["fidelity"]["passed"]
    calibration = read_bundle(tmp_path / "graphs").calibration
    (manifest,) = (tmp_path / "engines").glob("prefix-*.json")
    assert calibration is not None
    assert json.loads(manifest.read_text())["identity"]["calibration"] == calibration.digest


def test_pruned_engines_are_served_without_torch_and_onnx(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, observation = HostDevice(compute_capability="8.9"), libero_observation()
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(build_cli, "load_tensorrt", lambda: TensorRt(make_tensorrt("8.6.0", device)))
    monkeypatch.setattr(build_cli, "open_device", lambda name: device)
    pruning = {"keep_tokens": 64, "pruning_mode": "union"}
    graphs, engines = tmp_path / "graphs", tmp_path / "engines"
    export_cli.run(export_cli.Args("demo", graphs, env="LIBERO", num_steps=STEPS, **pruning))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="was exported with token pruning"):
        build_cli.run(build_cli.Args(str(graphs), engines, cameras="2", keep_tokens=24))
    report = build_cli.run(build_cli.Args(str(graphs), engines, cameras="2"))
    assert report is not None
    assert report.passed, report.table()
    policy = UnifiedPolicy(
        "demo", num_denoising_steps=STEPS, device="cpu", token_pruning={"keep_tokens": 64, "mode": "union"}
    )
    expected = policy.infer(observation, seed=7)
    with robot(tmp_path, engines, "--keep-tokens", "64", "--pruning-mode", "union") as daemon:
        daemon.wait_ready()
        client = WebsocketClientPolicy("127.0.0.1", daemon.port)
        reply = client.infer({**observation, "vlad/seed": 7})
        client.close()
    np.testing.assert_allclose(reply["actions"], expected["actions"], rtol=0, atol=1e-4)
    for name in ("image_tokens_kept", "image_tokens_voted"):
        assert reply["policy_timing"][name] == expected["policy_timing"][name]
    with robot(tmp_path, engines) as daemon:
        assert "form.pruning" in refusal(daemon)


def refusal(daemon: Daemon) -> str:
    assert daemon.process.wait(60) == 2
    return daemon.log()


def test_engines_without_a_report_are_refused_unless_asked_for(
    cache: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    engines = tmp_path / "engines"
    shutil.copytree(cache / "engines", engines)
    for report in engines.glob("fidelity-*.json"):
        report.unlink()
    with robot(cache, engines) as daemon:
        log = refusal(daemon)
    assert "torch is not installed, and no report of an earlier comparison lies beside its engines" in log
    with robot(cache, engines, "--allow-low-fidelity") as daemon:
        daemon.wait_ready()
        client = WebsocketClientPolicy("127.0.0.1", daemon.port)
        fidelity = client.get_server_metadata()["fidelity"]
        client.close()
    assert (fidelity["passed"], fidelity["override"]) == (False, True)


def test_engines_that_do_not_fit_are_refused_with_the_field_that_differs(cache: pathlib.Path) -> None:
    with robot(cache, cache / "engines", "--precision", "tf32") as daemon:
        assert "arithmetic: fp32, not tf32" in refusal(daemon)
