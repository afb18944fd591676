"""A robot's computer runs prebuilt engines with tensorrt, pycuda and numpy: neither torch nor onnx."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from tests.support.tiny_networks import random_weights, tiny_config
from vlad_engines.export.exporter import export_bundle
from vlad_engines.export.spec import GraphForm

GUARD = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "triton", "onnx", "onnxruntime"}:
            raise ModuleNotFoundError(f"{name} was imported where a robot has none", name=name)

sys.meta_path.insert(0, Guard())
"""

RUNTIME = (
    "vlad_engines.backends.registry",
    "vlad_engines.backends.tensorrt.backend",
    "vlad_engines.backends.tensorrt.build_cli",
    "vlad_engines.export.bundle",
    "vlad_engines.processing.processor",
    "vlad_engines.unified_policy",
)


def run_guarded(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", GUARD + code, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_guard_guards() -> None:
    assert "torch was imported where a robot has none" in run_guarded("import torch").stderr


@pytest.mark.parametrize("module", RUNTIME)
def test_the_runtime_imports_neither_torch_nor_onnx(module: str) -> None:
    result = run_guarded(f"import {module}")
    assert result.returncode == 0, result.stderr


def test_a_backend_is_created_up_to_the_missing_tensorrt_without_torch(tmp_path: pathlib.Path) -> None:
    code = """
from vlad_configs.errors import ConfigError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import create_backend
sys.modules["tensorrt"] = None
try:
    options = BackendOptions(10, "bf16", "cuda", engine_dir=sys.argv[1])
    create_backend("tensorrt", ModelConfig("pi05"), {}, options)
except ConfigError as error:
    print(error)
"""
    result = run_guarded(code, str(tmp_path))
    assert "TensorRT cannot be loaded" in result.stdout, result.stderr


REQUEST = """
import pathlib
import numpy as np
from vlad_configs.models import CAMERA_SLOTS
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.tensorrt.arithmetic import parse_arithmetic
from vlad_engines.backends.tensorrt.backend import TensorRtBackend
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans, PrebuiltPlans
from vlad_engines.backends.tensorrt.cache import EngineCache, EngineFolder
from vlad_engines.backends.tensorrt.graph_source import BundleGraphs
from vlad_engines.backends.tensorrt.manifest import BuildSettings
from vlad_engines.export.bundle import read_bundle
from vlad_engines.processing.model_inputs import ModelInputs

sys.meta_path.pop(0)  # the stand-ins for TensorRT and the GPU need onnx themselves
from tests.support.host_tensorrt import HostDevice, make_tensorrt
import onnx, onnxruntime
for name in [name for name in sys.modules if name.partition(".")[0] == "torch"]:
    raise SystemExit("the stand-ins imported torch")

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "triton"}:
            raise ModuleNotFoundError(f"{name} was imported where a robot has none", name=name)

sys.meta_path.insert(0, Guard())
bundle = read_bundle(pathlib.Path(sys.argv[1]))
config, size = bundle.model, bundle.model.siglip.image_size
inputs = ModelInputs(
    cameras=CAMERA_SLOTS[:2],
    images=np.full((2, size, size, 3), 7, np.uint8),
    tokens=np.arange(config.max_token_len),
    token_mask=np.arange(config.max_token_len) < 5,
    state=np.zeros(config.action_dim),
    robot_state=np.zeros(0),
)
noise = np.ones((config.action_horizon, config.action_dim), np.float32)
folder = pathlib.Path(sys.argv[1]) / "engines"
chunks = []
for make_plans in (
    lambda: BuiltPlans(EngineCache(folder), BundleGraphs(bundle), BuildSettings()),
    lambda: PrebuiltPlans(EngineFolder(folder), None),
):
    device = HostDevice()
    backend = TensorRtBackend(
        config,
        BackendOptions(bundle.form.num_steps, "fp32", "cuda"),
        parse_arithmetic("fp32"),
        TensorRt(make_tensorrt("8.6.0", device)),
        device,
        make_plans(),
    )
    chunks.append(backend.infer(inputs, noise).actions)
    backend.close()
np.testing.assert_array_equal(*chunks)
print("served", chunks[0].shape)
"""


def test_engines_are_built_from_exported_graphs_and_served_without_torch(tmp_path: pathlib.Path) -> None:
    config = tiny_config("pi05")
    export_bundle(config, random_weights(config), GraphForm(2), tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", GUARD + REQUEST, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "served (5, 6)" in result.stdout, result.stderr
