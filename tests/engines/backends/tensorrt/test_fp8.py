"""fp8 in the `tensorrt` backends: what it means, who refuses it, and which engines it may be served with."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import onnx
import pytest

from tests.engines.backends.tensorrt.test_refusals import Untouchable
from tests.support import fidelity
from tests.support.host_tensorrt import HostDevice, make_tensorrt
from vlad_configs.errors import ConfigError
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import create_backend
from vlad_engines.backends.tensorrt import backend as tensorrt_backend
from vlad_engines.backends.tensorrt import build_cli
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic, parse_arithmetic
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.export.spec import COMPONENTS, GraphForm
from vlad_engines.fidelity.check import check_backend
from vlad_engines.fidelity.observations import calibration_inputs
from vlad_engines.fidelity.verify import make_processor
from vlad_engines.processing.model_inputs import ModelInputs

OLD, NEW = "8.6.0", "10.13.3.9"


def observations(family: str = "pi05") -> tuple[ModelInputs, ...]:
    opened = fidelity.checkpoint(family)
    return calibration_inputs(make_processor(opened), opened.contract)[:2]


def options(**changes: Any) -> BackendOptions:
    usual = BackendOptions(
        fidelity.STEPS, "fp8", "cuda", camera_counts=(2,), batch_sizes=(1, 2), calibration=observations()
    )
    return dataclasses.replace(usual, **changes)


@dataclasses.dataclass
class Machine:
    """A GPU and TensorRT; `install` replaces them."""

    patch: pytest.MonkeyPatch
    tensorrt: Any = None

    def install(self, version: str = NEW, compute_capability: str = "8.9") -> None:
        device = HostDevice(compute_capability=compute_capability)
        self.tensorrt = make_tensorrt(version, device)
        self.patch.setitem(sys.modules, "tensorrt", self.tensorrt)
        for module in (tensorrt_backend, build_cli):
            self.patch.setattr(module, "open_device", lambda name: device)

    def create(self, family: str = "pi05", name: str = "tensorrt", **changes: Any) -> Any:
        opened = fidelity.checkpoint(family)
        weights = open_weights(opened, "cpu")
        return create_backend(name, opened.contract.model, weights, options(**changes))

    def builds(self) -> list[str]:
        """Which components were built since, by what goes in."""
        names = {"pixels": "vision", "image_tokens": "prefix", "x_t": "denoise"}
        built = [names[build["network"].get_input(0).name] for build in self.tensorrt.builds]
        self.tensorrt.builds.clear()
        return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A cache folder with engines of pi0.5 in fp8. Tracing their graphs takes longer than all the rest."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLAD_CACHE_DIR", str(folder))
        machine = Machine(patch)
        machine.install()
        prepare(machine.create())
        assert machine.builds() == ["vision", "prefix", "denoise"]
    return folder


@pytest.fixture
def machine(built: pathlib.Path, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Machine:
    """With a cache folder of its own, in which `built` lies."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    machine = Machine(monkeypatch)
    machine.install()
    return machine


def prepare(backend: Any) -> None:
    """Get the engines and load them."""
    with backend._device.active():
        backend._ready(lambda stage, fraction: None)


def test_fp8_is_bf16_with_the_prefix_in_float8() -> None:
    arithmetic = parse_arithmetic("fp8")
    assert arithmetic == ComponentArithmetic("bf16", "fp8", "bf16")
    assert arithmetic == parse_arithmetic("vision=bf16,prefix=fp8,denoise=bf16")
    form = GraphForm(4, "bfloat16", "bfloat16", "bfloat16", prefix_float8=True)
    assert arithmetic.form(4, "step") == form
    assert parse_arithmetic("vision=fp16,prefix=fp8,denoise=fp32").form(4, "step").vision == "float16"


@pytest.mark.parametrize("component", ["vision", "denoise"])
def test_only_the_prefix_can_be_fp8(component: str) -> None:
    parts = dict.fromkeys(COMPONENTS, "bf16") | {component: "fp8"}
    text = ",".join(f"{name}={value}" for name, value in parts.items())
    with pytest.raises(ConfigError, match=rf"{component} cannot be computed in fp8, only the prefix can"):
        parse_arithmetic(text)


@pytest.mark.parametrize("precision", ["fp8", "vision=fp32,prefix=fp8,denoise=fp32"])
def test_tensorrt_86_refuses_before_any_work(machine: Machine, precision: str) -> None:
    machine.install(OLD)
    message = (
        r"TensorRT 8\.6\.0 has no fp8, which prefix shall use: choose --precision fp32, or install .*10\.1"
    )
    model = fidelity.tiny_model("pi05")
    with pytest.raises(ConfigError, match=message):
        create_backend("tensorrt", model, Untouchable(), options(precision=precision))
    with pytest.raises(ConfigError, match=message):
        build_cli.run(build_cli.Args("nowhere", pathlib.Path("nowhere"), precision=precision))


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.7"])
def test_gpus_that_cannot_refuse_before_any_work(machine: Machine, capability: str) -> None:
    machine.install(compute_capability=capability)
    message = (
        rf"needs a GPU of compute capability 8\.9 or newer; host has {capability}: choose --precision bf16"
    )
    with pytest.raises(ConfigError, match=message):
        create_backend("tensorrt_pipelined", fidelity.tiny_model("pi05"), Untouchable(), options())
    with pytest.raises(ConfigError, match=message):
        build_cli.run(build_cli.Args("nowhere", pathlib.Path("nowhere"), precision="fp8"))


@pytest.mark.parametrize("capability", ["8.9", "9.0", "10.0", "11.0", "12.1"])
def test_gpus_that_can(capability: str) -> None:
    parse_arithmetic("fp8").check_gpu("any", capability)


def test_other_precisions_need_no_such_gpu() -> None:
    parse_arithmetic("bf16").check_gpu("any", "8.0")


def test_an_onnx_without_float8_is_refused_before_any_work(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 18)
    with pytest.raises(ConfigError, match=r"float8 needs ONNX operator set 19; onnx .* ends at 18"):
        create_backend("tensorrt", fidelity.tiny_model("pi05"), Untouchable(), options())


def test_calibration_without_fp8_is_refused() -> None:
    with pytest.raises(ConfigError, match="--calibration is for --precision fp8 of a checkpoint"):
        build_cli.run(build_cli.Args("nowhere", pathlib.Path("nowhere"), calibration="some.mcap"))


def test_it_passes_the_check_that_stands_before_every_robot(machine: Machine) -> None:
    backend = machine.create()
    report = check_backend(
        backend, fidelity.reference("pi05"), name="tensorrt", precision="fp8", batch_sizes=(1,)
    )
    assert report.passed, report.table()
    assert report.components["prefix_keys"].cosine < report.components["vision_tokens"].cosine
    description = backend.describe()
    assert {name: part["precision"] for name, part in description.items()} == {
        "vision": "bf16",
        "prefix": "fp8",
        "denoise": "bf16",
    }
    assert len(description["prefix"]["calibration"]) == 64


def test_engines_are_found_again_and_other_observations_build_the_prefix_anew(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vlad.tensorrt")

    def start(**changes: Any) -> tuple[list[str], bool, str]:
        backend = machine.create(**changes)
        prepare(backend)
        calibrated = "calibrating fp8" in caplog.text
        caplog.clear()
        return machine.builds(), calibrated, backend.describe()["prefix"]["calibration"]

    built, calibrated, first = start()
    assert (built, calibrated) == ([], False)
    assert start(name="tensorrt_pipelined") == ([], False, first)
    others = tuple(
        dataclasses.replace(sample, images=np.full_like(sample.images, 255)) for sample in observations()
    )
    built, calibrated, second = start(calibration=others)
    assert (built, calibrated) == (["prefix"], True)
    assert second != first
    assert start() == ([], False, first)


def test_prebuilt_engines_bring_their_calibration_along(machine: Machine, tmp_path: pathlib.Path) -> None:
    usual = machine.create()
    prepare(usual)
    robot = machine.create(engine_dir=str(tmp_path / "tensorrt"), calibration=())
    prepare(robot)
    assert machine.builds() == []
    assert robot.describe() == usual.describe()


def test_prebuilt_engines_of_another_precision_are_refused(machine: Machine, tmp_path: pathlib.Path) -> None:
    robot = machine.create(engine_dir=str(tmp_path / "tensorrt"), precision="bf16")
    with pytest.raises(ConfigError, match=r"form\.prefix_float8: True, not False"):
        prepare(robot)


def test_the_command_calibrates_a_checkpoint(tmp_path: pathlib.Path) -> None:
    args = build_cli.Args("demo", tmp_path / "engines", precision="fp8", env="LIBERO", num_steps=2)
    graphs = build_cli._checkpoint_graphs(args, parse_arithmetic("fp8"), tmp_path)
    assert graphs.form.prefix_float8
    assert graphs.calibration is not None
    assert len(list(tmp_path.glob("calibration-*.json"))) == 1
