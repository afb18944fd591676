"""What every backend offers, whatever engine is behind it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError
from vlad_configs.precision import parse_precision
from vlad_configs.pruning import TokenPruning
from vlad_engines.processing.model_inputs import ModelInputs

Precision = str
"""What `vlad_configs.precision.parse_precision` reads."""

ImageDtype = Literal["uint8", "float32"]

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


@dataclasses.dataclass(frozen=True)
class BackendOptions:
    """How a backend shall run the model.

    Attributes:
        num_steps: Euler steps of the flow, 1 or more; the checkpoint's reference is 10.
        precision: `fp32` everywhere (without TF32, unless the process has turned that on), or `bf16` with
            float32 where openpi keeps it, or `fp8`: bf16 with the products of some components in float8;
            others, and one for each component, where a backend has them.
        device: `cpu`, `cuda` or `cuda:N`.
        enable_kv_cache: False computes the prefix again in every denoise step. Slower, same actions.
        camera_counts: numbers of real cameras that requests may have; backends that capture graphs or
            build engines make them for these.
        batch_sizes: numbers of requests that may be computed together, likewise.
        image_dtype: of the requests' images, as `ModelInputs` holds them.
        engine_dir: folder of prebuilt engines, for backends that have such; None to build what is missing.
        calibration: observations from which `fp8` learns how large activations become. Engines in
            `engine_dir` have learnt it already.
        pruning: which image tokens the prefix keeps; None for all. A part of every key under which graphs
            or engines are kept, since their shapes follow from it.
    """

    num_steps: int
    precision: Precision
    device: str
    enable_kv_cache: bool = True
    camera_counts: tuple[int, ...] = (1, 2, 3)
    batch_sizes: tuple[int, ...] = (1,)
    image_dtype: ImageDtype = "uint8"
    engine_dir: str | None = None
    calibration: Sequence[ModelInputs] = dataclasses.field(default=(), repr=False, compare=False)
    pruning: TokenPruning | None = None

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, not {self.num_steps}")
        is_fp8 = "fp8" in parse_precision(self.precision).values()
        if is_fp8 and not self.calibration and self.engine_dir is None:
            raise ConfigError("precision 'fp8' needs observations for its calibration")
        if self.image_dtype not in ("uint8", "float32"):
            raise ConfigError(f"image_dtype must be 'uint8' or 'float32', not {self.image_dtype!r}")
        if not _DEVICE.fullmatch(self.device):
            raise ConfigError(f"device must be 'cpu', 'cuda' or 'cuda:N', not {self.device!r}")


@dataclasses.dataclass(frozen=True)
class PrunedTokens:
    """Image tokens of one request.

    Attributes:
        before: of all real cameras.
        kept: that count in the prefix.
        voted: that any token voted for. More than `kept` in `union` mode: the slots did not suffice.
    """

    before: int
    kept: int
    voted: int


@dataclasses.dataclass(frozen=True)
class InferenceResult:
    """What came out of one request.

    Attributes:
        actions: `[action_horizon, action_dim]`, normalised, an array of its own.
        stage_seconds: `vision`, `prefix`, `denoise`: seconds each stage took on the device.
            `vision` includes the upload of the request.
        overlapped_seconds: how long its vision and prefix ran beside another request's denoising.
        pruned: what token pruning did to it; None where it is off.
    """

    actions: npt.NDArray[np.float32]
    stage_seconds: Mapping[str, float]
    overlapped_seconds: float = 0.0
    pruned: PrunedTokens | None = None


class Backend(Protocol):
    """The model on one device. Not thread-safe: one request at a time."""

    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        """Turn noise `[action_horizon, action_dim]` into actions; blocks until they are in host memory.

        Raises:
            EngineError: for inputs that do not fit the model, or after `close`.
        """
        ...

    def warm_up(self, progress: Callable[[str, float], None]) -> None:
        """Do once what would make a first request slow. `progress` gets a stage and a fraction 0..1."""
        ...

    def describe(self) -> dict[str, Any]:
        """Component (`vision`, `prefix`, `denoise`) -> engine, precision, version and device."""
        ...

    def close(self) -> None:
        """Give up weights and buffers."""
        ...
