"""The `pytorch` backend: sequential, eager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from vlad_configs.errors import ConfigError, EngineError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_configs.rtc import GUIDANCE_MODES, GuidanceMode
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.pytorch.components import make_components
from vlad_engines.backends.pytorch.trace import Tracer
from vlad_engines.components import Components, Slot
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.precision import Precision
from vlad_engines.pipeline import SequentialPipeline
from vlad_engines.processing.model_inputs import ModelInputs


def create(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], options: BackendOptions
) -> PytorchBackend:
    """See `registry.create_backend`."""
    device = _find_device(options.device)
    if options.precision not in get_args(Precision):
        raise ConfigError(f"backend 'pytorch' computes in fp32 or bf16, not {options.precision}")
    model = Pi0.from_openpi_weights(config, weights, cast(Precision, options.precision), device)
    return PytorchBackend(model, options, device)


class PytorchBackend:
    """See `base.Backend`."""

    def __init__(self, model: Pi0, options: BackendOptions, device: torch.device) -> None:
        self._config = model.config
        self._options = options
        self._device = device
        components = make_components(model, options.num_steps, options.enable_kv_cache, options.pruning)
        slot = Slot(model.config, model.activation_dtype, device, options.num_steps, options.pruning)
        self._pipeline: SequentialPipeline | None = SequentialPipeline(components, slot)
        self._tracer: Tracer | None = Tracer(components, slot)

    @property
    def guidance_modes(self) -> tuple[GuidanceMode, ...]:
        """See `capabilities.Guided`."""
        return GUIDANCE_MODES

    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        """See `base.Backend.infer`."""
        if self._pipeline is None:
            raise EngineError("the backend is closed")
        return self._pipeline.run(inputs, noise)

    def trace(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> Trace:
        """See `capabilities.Traceable`."""
        if self._tracer is None:
            raise EngineError("the backend is closed")
        return self._tracer.trace(inputs, noise)

    def warm_up(self, progress: Callable[[str, float], None]) -> None:
        """Run the largest request, so that a lack of memory shows now and not at some later request."""
        progress("warming up pytorch", 0.0)
        config = self._config
        size, cameras = config.siglip.image_size, len(CAMERA_SLOTS)
        largest = ModelInputs(
            cameras=CAMERA_SLOTS,
            images=np.zeros((cameras, size, size, 3), np.uint8),
            tokens=np.zeros(config.max_token_len, np.int64),
            token_mask=np.ones(config.max_token_len, np.bool_),
            state=np.zeros(config.action_dim),
            robot_state=np.zeros(config.action_dim),
        )
        self.infer(largest, np.zeros((config.action_horizon, config.action_dim), np.float32))
        progress("warming up pytorch", 1.0)

    def describe(self) -> dict[str, Any]:
        """See `base.Backend.describe`."""
        on_gpu = self._device.type == "cuda"
        component = {
            "engine": "pytorch",
            "version": str(torch.__version__),
            "precision": self._options.precision,
            "device": torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
        }
        return {name: dict(component) for name in Components._fields}

    def close(self) -> None:
        """See `base.Backend.close`."""
        self._pipeline = self._tracer = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _find_device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cpu":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = device.index or 0
    if index >= count:
        raise ConfigError(f"device '{name}' is not there: torch sees {count} CUDA devices")
    return torch.device("cuda", index)
