"""The `triton` backend: fused kernels and library products, replayed as CUDA graphs."""

from __future__ import annotations

import bisect
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from vlad_configs.errors import ConfigError, EngineError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_configs.rtc import GuidanceMode
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Trace
from vlad_engines.backends.triton import denoise_loop
from vlad_engines.backends.triton.engine import CapturedEngine
from vlad_engines.backends.triton.gate_up import gate_up_choices_of
from vlad_engines.backends.triton.library.products import choices_of
from vlad_engines.backends.triton.prefix_fp8 import Fp8Prefix, calibrate, quantise
from vlad_engines.backends.triton.slot import SlotKey
from vlad_engines.backends.triton.weights import fuse_weights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.processing.model_inputs import ModelInputs


def prompt_buckets(max_token_len: int) -> tuple[int, ...]:
    """Prompt lengths for which graphs are made: close together where prompts are short."""
    sizes = itertools.chain(range(8, 64, 8), range(64, 1024, 32))
    return (*itertools.takewhile(lambda size: size < max_token_len, sizes), max_token_len)


class TritonBackend:
    """Graphs for each (batch, cameras, prompt bucket); see `SlotKey`.

    Args:
        whole_device: denoise in one launch that occupies the whole GPU, where there is a kernel for it.
            Nothing else runs beside that.
    """

    guidance_modes: tuple[GuidanceMode, ...] = ("guided_identity",)

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        options: BackendOptions,
        *,
        whole_device: bool = True,
    ) -> None:
        self._config = config
        self._options = options
        self._device = torch.device(options.device)
        self._image_dtype: torch.dtype = getattr(torch, options.image_dtype)
        self._buckets = prompt_buckets(config.max_token_len)
        self._prefix: Fp8Prefix | None = None
        # Kernels, events and replayed graphs go to the calling thread's device, not to that of their tensors.
        with torch.cuda.device(self._device):
            in_one_launch = [whole_device and denoise_loop.supports(config, key) for key in self._keys()]
            self._weights = fuse_weights(
                config,
                weights,
                num_steps=options.num_steps,
                device=self._device,
                with_layers=not all(in_one_launch),
                with_loop=any(in_one_launch),
            )
            if options.precision == "fp8":
                calibration = calibrate(
                    config, self._weights, options.calibration, self._device, options.pruning
                )
                self._prefix = quantise(self._weights.prefix, calibration)
                self._weights = self._weights.without_prefix()
            # What was fused is garbage now, three gigabytes of it at full size.
            gc.collect()
            torch.cuda.empty_cache()
        self._denoise_kernels = " and ".join(
            name
            for name, is_used in (
                ("one launch", any(in_one_launch)),
                ("a chain of launches", not all(in_one_launch)),
            )
            if is_used
        )
        self._workspace = Workspace(self._device)
        self._engines: dict[SlotKey, CapturedEngine] = {}

    def warm_up(self, progress: Callable[[str, float], None]) -> None:
        """Capture the graphs of every key."""
        keys = self._keys()
        for index, key in enumerate(keys):
            progress(f"capturing graphs: {key}", index / len(keys))
            self._engine(key)

    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        """See `Backend.infer`."""
        return self.infer_batch([inputs], [noise])[0]

    def infer_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[npt.NDArray[np.float32]]
    ) -> list[InferenceResult]:
        """Compute several requests together; all with the same number of cameras.

        Raises:
            EngineError: for a batch size or a number of cameras without graphs, or inputs that do not fit.
        """
        return self.begin_batch(inputs, noise)()

    def begin_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[npt.NDArray[np.float32]]
    ) -> Callable[[], list[InferenceResult]]:
        """See `capabilities.Queued.begin_batch`; raises as `infer_batch` does."""
        engine = self._engine(self._key(inputs, noise))
        with torch.cuda.device(self._device):
            engine.begin(inputs, noise)

        def finish() -> list[InferenceResult]:
            with torch.cuda.device(self._device):
                result = engine.finish()
            return result.chunks.results(result.stage_seconds)

        return finish

    @torch.inference_mode()
    def trace(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> Trace:
        """See `capabilities.Traceable`."""
        engine = self._engine(self._key([inputs], [noise]))
        with torch.cuda.device(self._device):
            return engine.trace(inputs, noise)

    def describe(self) -> dict[str, Any]:
        """See `Backend.describe`."""
        part = {
            "engine": "triton",
            "precision": "bf16",
            "version": f"triton {triton.__version__}, torch {torch.__version__}",
            "device": torch.cuda.get_device_name(self._device),
        }
        large = (
            {"products": choices_of(self._device).describe()} if max(self._options.batch_sizes) > 1 else {}
        )
        return {
            "vision": {**part, **large},
            "prefix": {
                **part,
                **large,
                "precision": self._options.precision,
                "gate_up": gate_up_choices_of(self._device).describe(),
            },
            "denoise": {**part, "kernels": self._denoise_kernels},
        }

    def close(self) -> None:
        """See `Backend.close`."""
        self._engines.clear()
        del self._weights, self._prefix, self._workspace
        torch.cuda.empty_cache()

    def _keys(self) -> list[SlotKey]:
        """All keys, those that need most memory first; see `Workspace`."""
        return [
            SlotKey(batch, cameras, bucket, self._options.pruning)
            for batch in sorted(self._options.batch_sizes, reverse=True)
            for cameras in sorted(self._options.camera_counts, reverse=True)
            for bucket in sorted(self._buckets, reverse=True)
        ]

    @torch.inference_mode()
    def _engine(self, key: SlotKey) -> CapturedEngine:
        if key not in self._engines:
            with torch.cuda.device(self._device):
                self._engines[key] = CapturedEngine(
                    self._config,
                    self._weights,
                    key,
                    self._workspace,
                    self._prefix,
                    image_dtype=self._image_dtype,
                )
        return self._engines[key]

    def _key(self, inputs: Sequence[ModelInputs], noise: Sequence[npt.NDArray[np.float32]]) -> SlotKey:
        options, config = self._options, self._config
        if len(inputs) not in options.batch_sizes:
            raise EngineError(f"no graphs for batch {len(inputs)}; there are some for {options.batch_sizes}")
        cameras = {len(sample.cameras) for sample in inputs}
        if len(cameras) != 1 or not cameras <= set(options.camera_counts):
            raise EngineError(
                f"no graphs for {sorted(cameras)} cameras; a batch shares one of {options.camera_counts}"
            )
        size = config.siglip.image_size
        for sample, sample_noise in zip(inputs, noise, strict=True):
            if sample.images.dtype != options.image_dtype or sample.images.shape[1:] != (size, size, 3):
                raise EngineError(
                    f"images must be {options.image_dtype} [C, {size}, {size}, 3], "
                    f"not {sample.images.dtype} {sample.images.shape}"
                )
            if sample_noise.shape != (config.action_horizon, config.action_dim):
                raise EngineError(f"noise must be [{config.action_horizon}, {config.action_dim}]")
        longest = max(int(sample.token_mask.sum()) for sample in inputs)
        bucket = self._buckets[bisect.bisect_left(self._buckets, longest)]
        return SlotKey(len(inputs), cameras.pop(), bucket, options.pruning)


def create(config: ModelConfig, weights: Mapping[str, Tensor], options: BackendOptions) -> TritonBackend:
    """Make the backend.

    Raises:
        ConfigError: without an NVIDIA GPU, or for a precision it does not have.
    """
    if not options.device.startswith("cuda") or not torch.cuda.is_available():
        raise ConfigError(f"backend 'triton' needs an NVIDIA GPU, not device '{options.device}'")
    if options.precision not in ("bf16", "fp8"):
        raise ConfigError(f"backend 'triton' computes in bf16 or fp8, not {options.precision}")
    if not options.enable_kv_cache:
        raise ConfigError("backend 'triton' always keeps the prefix's keys and values; leave the cache on")
    if not set(options.camera_counts) <= set(range(1, len(CAMERA_SLOTS) + 1)):
        raise ConfigError(f"camera counts must lie in 1..{len(CAMERA_SLOTS)}, not {options.camera_counts}")
    return TritonBackend(config, weights, options)
