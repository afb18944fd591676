"""Where a slot keeps the guidance of its requests: fixed addresses, so that graphs can be bound to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlad_configs.errors import EngineError
from vlad_configs.models import ModelConfig
from vlad_engines.model.guided_flow import FlowGuidance
from vlad_engines.processing.guidance import Guidance


class GuidanceBuffers:
    """`FlowGuidance` of B requests on the device, and its pinned host end. New ones guide nothing.

    `fill` writes the host end; `upload` only enqueues copies and can be captured. A captured graph that
    reads `device` serves guided and plain requests alike.

    Attributes:
        device: what kernels read.
    """

    def __init__(self, config: ModelConfig, num_steps: int, device: torch.device, batch: int = 1) -> None:
        chunk = (batch, config.action_horizon, config.action_dim)
        self._host = FlowGuidance(
            *(
                torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
                for shape, dtype in (
                    (chunk, torch.float32),
                    (chunk, torch.float32),
                    ((batch, num_steps), torch.float32),
                    ((batch,), torch.int32),
                )
            )
        )
        self.device = FlowGuidance(*(torch.zeros_like(part, device=device) for part in self._host))

    def check(self, guidance: Sequence[Guidance | None]) -> None:
        """Refuse what does not fit these buffers.

        Raises:
            EngineError: says which shape was expected.
        """
        batch, *chunk = self._host.target.shape
        steps = self._host.gains.shape[1]
        if len(guidance) != batch:
            raise EngineError(f"guidance for {len(guidance)} requests, buffers for {batch}")
        for sample in guidance:
            if sample is not None and (list(sample.target.shape) != chunk or len(sample.gains) != steps):
                raise EngineError(
                    f"guidance must be {chunk} with {steps} gains, not {list(sample.target.shape)} "
                    f"with {len(sample.gains)}"
                )

    def fill(self, guidance: Sequence[Guidance | None]) -> None:
        """Take over the guidance of each request; None samples plainly. The caller's arrays are free again.

        Raises:
            EngineError: see `check`.
        """
        self.check(guidance)
        weights, target, gains, frozen = (part.numpy() for part in self._host)
        for index, sample in enumerate(guidance):
            weights[index] = 0.0 if sample is None else sample.weights
            target[index] = 0.0 if sample is None else sample.target
            gains[index] = 0.0 if sample is None else sample.gains
            frozen[index] = 0 if sample is None else sample.frozen

    def upload(self) -> None:
        """Enqueue the copies to the device."""
        for host, device in zip(self._host, self.device, strict=True):
            device.copy_(host, non_blocking=True)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The device's buffers, whose addresses never change."""
        return tuple(self.device)
