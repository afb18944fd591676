"""The weights of a checkpoint, wherever they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vlad_engines.checkpoint.loader import LazyWeights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint
from vlad_engines.checkpoint.random_checkpoint import is_random
from vlad_engines.checkpoint.random_weights import RandomWeights


def open_weights(checkpoint: PolicyCheckpoint, device: str) -> Mapping[str, torch.Tensor]:
    """Every tensor of the network by its openpi name, each read (or drawn) when it is asked for.

    Args:
        device: where random weights are drawn; files are read to the CPU.

    Raises:
        CheckpointError: see `LazyWeights`.
    """
    if is_random(checkpoint.files.path):
        return RandomWeights(checkpoint.contract.model, device)
    return LazyWeights(checkpoint.files, checkpoint.names)
