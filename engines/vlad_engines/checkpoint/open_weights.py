"""The weights of a checkpoint, wherever they are. Imports torch when the first one is asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint
from vlad_engines.checkpoint.random_checkpoint import is_random
from vlad_engines.checkpoint.stored_digest import stored_digest

if TYPE_CHECKING:
    import torch


class CheckpointWeights(Mapping[str, "torch.Tensor"]):
    """Every tensor of the network by its openpi name, each read (or drawn) when it is asked for.

    Args:
        device: where random weights are drawn; files are read to the CPU.

    Raises:
        CheckpointError: by whatever comes first to look at a weight; see `loader.LazyWeights`.
    """

    def __init__(self, checkpoint: PolicyCheckpoint, device: str) -> None:
        self._checkpoint = checkpoint
        self._device = device

    def digest(self) -> str | None:
        """`fingerprint.weights_digest` of the file, without torch; None for random weights, which have none.

        Raises:
            CheckpointError: for a file that cannot be read.
        """
        if is_random(self._checkpoint.files.path):
            return None
        return stored_digest(self._checkpoint.files, self._checkpoint.names)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @functools.cached_property
    def _tensors(self) -> Mapping[str, torch.Tensor]:
        if is_random(self._checkpoint.files.path):
            from vlad_engines.checkpoint.random_weights import RandomWeights

            return RandomWeights(self._checkpoint.contract.model, self._device)
        from vlad_engines.checkpoint.loader import LazyWeights

        return LazyWeights(self._checkpoint.files, self._checkpoint.names)


def open_weights(checkpoint: PolicyCheckpoint, device: str) -> CheckpointWeights:
    """See `CheckpointWeights`."""
    return CheckpointWeights(checkpoint, device)
