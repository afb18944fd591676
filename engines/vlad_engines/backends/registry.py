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

PRUNING_BACKENDS = ("pytorch",)
"""Those that can leave image tokens out of the prefix."""


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
    if options.pruning is not None and name not in PRUNING_BACKENDS:
        raise ConfigError(f"backend '{name}' prunes no tokens; {' or '.join(PRUNING_BACKENDS)} does")
    try:
        module = cast(_BackendModule, importlib.import_module(_MODULES[name]))
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"backend '{name}' needs the package '{error.name}', which is not installed"
        ) from error
    return module.create(config, weights, options)


def check_backend(name: str) -> None:
    """Refuse an unknown name, without importing any engine.

    Raises:
        ConfigError: see `create_backend`.
    """
    if name not in BACKEND_NAMES:
        raise ConfigError(f"unknown backend '{name}': expected one of {', '.join(BACKEND_NAMES)}")
