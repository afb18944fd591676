"""Names of the backends. A name runs what it says or start-up fails; there is no fallback."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, cast

from vlad_configs.errors import ConfigError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import Backend, BackendOptions

if TYPE_CHECKING:
    import torch

_MODULES: Mapping[str, str] = {
    "pytorch": "vlad_engines.backends.pytorch.backend",
    "triton": "vlad_engines.backends.triton.backend",
    "triton_pipelined": "vlad_engines.backends.triton_pipelined.backend",
    "tensorrt": "vlad_engines.backends.tensorrt.backend",
    "tensorrt_pipelined": "vlad_engines.backends.tensorrt_pipelined.backend",
}

BACKEND_NAMES = tuple(_MODULES)
"""Every name that `--backend` knows. `_pipelined` is the same engine in the overlapped schedule."""


class _BackendModule(Protocol):
    def create(
        self, config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
    ) -> Backend: ...


def create_backend(
    name: str, config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
) -> Backend:
    """Make the backend called `name`.

    Args:
        weights: every tensor of `openpi_names.expected_tensors(config)` by its openpi name, any float dtype.

    Raises:
        ConfigError: for an unknown name, a missing package, or a device that is not there.
        CheckpointError: for weights that do not fit `config`.
    """
    check_backend(name)
    if options.engine_dir is not None and not is_tensorrt(name):
        raise ConfigError(f"engine_dir is for TensorRT's backends, not for '{name}'")
    try:
        module = cast(_BackendModule, importlib.import_module(_MODULES[name]))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backend '{name}' needs the package '{error.name}', which is not installed"
        ) from error
    return module.create(config, weights, options)


def is_tensorrt(name: str) -> bool:
    """Whether a backend runs TensorRT's engines, with nothing of torch."""
    return name.startswith("tensorrt")


def usual_device(name: str) -> str:
    """The device of a backend where none is named: the first GPU, or else the CPU."""
    if is_tensorrt(name):
        return "cuda"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def usual_precision(name: str, device: str) -> str:
    """The precision of a backend where none is named: bf16 where device and engine have it, or else fp32.

    Raises:
        ConfigError: where the engine is not installed.
    """
    if is_tensorrt(name):
        from vlad_engines.backends.tensorrt.api import load_tensorrt

        return "bf16" if load_tensorrt().strongly_typed else "fp32"
    return "bf16" if device.startswith("cuda") else "fp32"


def check_backend(name: str) -> None:
    """Refuse an unknown name, without importing any engine.

    Raises:
        ConfigError: see `create_backend`.
    """
    if name not in BACKEND_NAMES:
        raise ConfigError(f"unknown backend '{name}': expected one of {', '.join(BACKEND_NAMES)}")
