"""A backend runs what its name says, or start-up fails."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import get_args

import pytest

from tests.support.tiny_networks import random_weights, tiny_config
from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.serving import BackendName
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import BACKEND_NAMES, create_backend

OPTIONS = BackendOptions(num_steps=2, precision="fp32", device="cpu")
CONFIG = tiny_config("pi05")


def test_pytorch_is_available() -> None:
    assert BACKEND_NAMES[0] == "pytorch"
    backend = create_backend("pytorch", CONFIG, random_weights(CONFIG), OPTIONS)
    assert {component["engine"] for component in backend.describe().values()} == {"pytorch"}
    backend.close()


def test_the_names_are_those_that_the_daemon_can_be_started_with() -> None:
    assert set(BACKEND_NAMES) == set(get_args(BackendName))


@pytest.mark.parametrize("name", [name for name in BACKEND_NAMES if name != "pytorch"])
def test_a_backend_for_gpus_refuses_a_processor_and_says_so(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"needs an NVIDIA GPU, not device 'cpu'|needs the package 'triton'"
    ):
        create_backend(name, CONFIG, random_weights(CONFIG), OPTIONS)


def test_an_unknown_name_is_refused_with_the_list_of_names() -> None:
    with pytest.raises(ConfigError) as refusal:
        create_backend("tensorflow", CONFIG, random_weights(CONFIG), OPTIONS)
    text = str(refusal.value)
    assert "unknown backend 'tensorflow'" in text
    assert all(name in text for name in BACKEND_NAMES)


def test_the_registry_imports_no_engine() -> None:
    code = "import sys, vlad_engines.backends.registry; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_weights_of_another_family_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"missing state_proj\.weight"):
        create_backend("pytorch", tiny_config("pi0"), random_weights(CONFIG), OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"precision": "fp16"}, "precision must be 'fp32', 'bf16' or 'fp8'"),
        ({"image_dtype": "int8"}, "image_dtype must be 'uint8' or 'float32'"),
        ({"device": "tpu"}, "device must be 'cpu', 'cuda' or 'cuda:N'"),
        ({"device": "cuda:"}, "device must be 'cpu', 'cuda' or 'cuda:N'"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"num_steps": 10, "precision": "fp32", "device": "cpu", **options}
    with pytest.raises(ConfigError, match=message):
        BackendOptions(**values)  # type: ignore[arg-type]


def test_a_device_that_is_not_there_is_refused() -> None:
    options = BackendOptions(num_steps=2, precision="fp32", device="cuda:99")
    with pytest.raises(ConfigError, match="device 'cuda:99' is not there"):
        create_backend("pytorch", CONFIG, random_weights(CONFIG), options)
