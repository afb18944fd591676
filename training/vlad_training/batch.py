"""A batch of training samples, and its way to the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Sample:
    """One frame: what was seen, and what was done from there on. Fields as in `Batch`, without B."""

    images: Tensor
    tokens: Tensor
    token_count: Tensor
    state: Tensor
    actions: Tensor
    inside: Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """B samples with the same C cameras.

    Attributes:
        images: `[B, C, S, S, 3]` uint8.
        tokens: `[B, L]` int64; real ones first, 0 behind them.
        token_counts: `[B]` int64.
        state: `[B, A]` float32, normalised and padded.
        actions: `[B, H, A]` float32, normalised and padded.
        inside: `[B, H]` bool, False for actions past the end of the episode, which repeat its last one.
    """

    images: Tensor
    tokens: Tensor
    token_counts: Tensor
    state: Tensor
    actions: Tensor
    inside: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in fields.items()})

    def pin_memory(self) -> Batch:
        """The same in pinned memory; torch's data loader calls this."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Batch(**{name: tensor.pin_memory() for name, tensor in fields.items()})


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples."""
    return Batch(
        images=torch.stack([sample.images for sample in samples]),
        tokens=torch.stack([sample.tokens for sample in samples]),
        token_counts=torch.stack([sample.token_count for sample in samples]),
        state=torch.stack([sample.state for sample in samples]),
        actions=torch.stack([sample.actions for sample in samples]),
        inside=torch.stack([sample.inside for sample in samples]),
    )
