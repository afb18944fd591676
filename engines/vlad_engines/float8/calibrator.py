"""Calibrates with the float32 network, for backends that have no network of their own to run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint
from vlad_engines.fidelity.observations import calibration_inputs
from vlad_engines.fidelity.reference import as_observation, free_device_memory, strict_float32
from vlad_engines.fidelity.verify import make_processor
from vlad_engines.float8.calibration import Calibration, PeakRecorder, Product, inputs_digest
from vlad_engines.model.gemma import GemmaLayer
from vlad_engines.model.pi0 import Pi0
from vlad_engines.processing.model_inputs import ModelInputs

_READERS: Mapping[Product, str] = {
    "qkv": "self_attn.q_proj",
    "out": "self_attn.o_proj",
    "gate_up": "mlp.gate_proj",
    "down": "mlp.down_proj",
}
"""A module of the layer that reads each input."""


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A network and observations for it; nothing runs before it is called.

    Attributes:
        weights: every tensor of the network by its openpi name.
        inputs: observations, at least one.
        device: torch device on which the network runs.
    """

    config: ModelConfig
    weights: Mapping[str, Tensor]
    inputs: Sequence[ModelInputs]
    device: str

    @functools.cached_property
    def inputs_digest(self) -> str:
        """See `calibration.inputs_digest`."""
        return inputs_digest(self.inputs)

    def __call__(self) -> Calibration:
        """Run vision and prefix over the observations. A full-size network takes 13 GB meanwhile.

        Raises:
            ConfigError: where activations are not finite.
            EngineError: where the network does not fit into the device's memory.
        """
        try:
            with strict_float32(), torch.inference_mode():
                return _watch(
                    Pi0.from_openpi_weights(self.config, self.weights, "fp32", self.device), self.inputs
                )
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"the float32 network of the calibration does not fit on {self.device}: {error}"
            ) from error
        finally:
            free_device_memory(self.device)


def checkpoint_calibrator(
    checkpoint: PolicyCheckpoint, weights: Mapping[str, Tensor], observations: str | None, device: str
) -> Calibrator:
    """For a checkpoint as it will be served.

    Args:
        weights: of the checkpoint.
        observations: recording or npz file; None for drawn ones.

    Raises:
        ConfigError, ObservationError: as `calibration_inputs`.
    """
    contract = checkpoint.contract
    inputs = calibration_inputs(make_processor(checkpoint), contract, observations)
    return Calibrator(contract.model, weights, inputs, device)


def calibration_device(device: str) -> str:
    """Where to calibrate for an engine on `device`: there, or on the CPU where torch knows no GPU."""
    return device if torch.cuda.is_available() else "cpu"


def _watch(model: Pi0, inputs: Sequence[ModelInputs]) -> Calibration:
    layers = cast("list[GemmaLayer]", list(model.vlm.layers))
    recorder = PeakRecorder(len(layers))

    def watcher(index: int, product: Product) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def watch(module: Any, arguments: tuple[Tensor, ...]) -> None:
            recorder.note(index, product, float(arguments[0].abs().max()))

        return watch

    for index, layer in enumerate(layers[:-1]):
        for product, name in _READERS.items():
            layer.get_submodule(name).register_forward_pre_hook(watcher(index, product))
    for sample in inputs:
        model.compute_prefix_kv_cache(model.embed_prefix(as_observation(sample, model.rope_cos.device)))
    return recorder.calibration()
