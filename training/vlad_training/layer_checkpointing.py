"""Gradient checkpointing: layers are computed a second time in the backward pass instead of being kept."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from vlad_engines.model.pi0 import Pi0


def checkpoint_layers(model: Pi0) -> None:
    """Let every transformer layer of the network forget its activations. Results stay the same."""
    for stack in (model.vision_tower.layers, model.vlm.layers, model.expert.layers):
        for layer in stack:
            assert isinstance(layer, nn.Module)
            forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
            setattr(layer, "forward", forward)  # noqa: B010 - mypy refuses a plain assignment
