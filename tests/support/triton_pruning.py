"""Runs the pruned Triton stages in the interpreter beside the pytorch backend, and prints how far apart they are.

`python -m tests.support.triton_pruning FAMILY` with TRITON_INTERPRET=1. Two requests with prompts of
different length share a batch. One line of JSON per case: cameras, K, mode and positions.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch

from tests.support.triton_comparison import random_weights, small_config
from vlad_configs.models import CAMERA_SLOTS, Family, ModelConfig
from vlad_configs.pruning import Positions, PruningMode, TokenPruning
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.chunks import pruned_tokens
from vlad_engines.backends.registry import create_backend
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage, PrefixStage, VisionStage
from vlad_engines.backends.triton.weights import FusedWeights, fuse_weights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.processing.model_inputs import ModelInputs

STEPS = 2
BUCKET = 8
PROMPTS = (8, 5)

Requests = Sequence[ModelInputs]


def requests_with(config: ModelConfig, cameras: int) -> list[ModelInputs]:
    """A batch whose prompts differ in length, and in padding that must not matter."""
    random, size = np.random.default_rng(cameras), config.siglip.image_size
    return [
        ModelInputs(
            cameras=CAMERA_SLOTS[:cameras],
            images=random.integers(256, size=(cameras, size, size, 3), dtype=np.uint8),
            tokens=random.integers(config.vocab_size, size=BUCKET),
            token_mask=np.arange(BUCKET) < length,
            state=random.normal(size=config.action_dim),
            robot_state=np.zeros(0),
        )
        for length in PROMPTS
    ]


def run_stages(
    config: ModelConfig, fused: FusedWeights, requests: Requests, noise: torch.Tensor, key: SlotKey
) -> Slot:
    """All three stages over a slot of its own."""
    workspace = Workspace(torch.device("cpu"))
    slot = Slot(config, key, torch.float32, workspace, STEPS)
    slot.images.copy_(torch.from_numpy(np.concatenate([request.images for request in requests])))
    slot.tokens.copy_(torch.from_numpy(np.stack([request.tokens for request in requests])))
    slot.lengths.copy_(slot.image_rows + torch.tensor(PROMPTS))
    slot.state.copy_(torch.from_numpy(np.stack([request.state for request in requests])))
    slot.noise.copy_(noise)
    VisionStage(config, fused, slot, workspace)()
    PrefixStage(config, fused, slot, workspace)()
    DenoiseStage(config, fused, slot, workspace)()
    return slot


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of what is printed.

    Attributes:
        difference: largest absolute one to the actions of the pytorch backend.
        by_pruning: largest one to the unpruned actions; exactly 0 for the same bits.
        tokens_agree: kept and voted are those of the pytorch backend, and indeed those of this mode.
        repeated: a second run gave the same bits.
    """

    cameras: int
    keep_tokens: int
    mode: PruningMode
    positions: Positions
    difference: float
    by_pruning: float
    tokens_agree: bool
    repeated: bool


@torch.inference_mode()
def main(family: Family) -> None:
    config = small_config(family)
    weights = random_weights(config)
    fused = fuse_weights(config, weights, num_steps=STEPS, device=torch.device("cpu"), precision="fp32")
    noise = torch.randn(
        len(PROMPTS), config.action_horizon, config.action_dim, generator=torch.Generator().manual_seed(0)
    )
    for cameras in range(1, len(CAMERA_SLOTS) + 1):
        requests, pool = requests_with(config, cameras), cameras * config.siglip.num_tokens
        unpruned = run_stages(config, fused, requests, noise, SlotKey(len(PROMPTS), cameras, BUCKET))
        modes = itertools.product((3, pool), get_args(PruningMode), get_args(Positions))
        for keep_tokens, mode, positions in modes:
            pruning = TokenPruning(keep_tokens, mode=mode, positions=positions)
            key = SlotKey(len(PROMPTS), cameras, BUCKET, pruning)
            slot, again = (run_stages(config, fused, requests, noise, key) for _ in range(2))
            options = BackendOptions(STEPS, "fp32", "cpu", pruning=pruning)
            backend = create_backend("pytorch", config, weights, options)
            pairs = zip(requests, noise.numpy(), strict=True)
            expected: list[InferenceResult] = [backend.infer(*pair) for pair in pairs]
            assert slot.selected is not None
            actions = torch.from_numpy(np.stack([result.actions for result in expected]))
            case = Case(
                cameras,
                keep_tokens,
                mode,
                positions,
                difference=float((slot.actions - actions).abs().max()),
                by_pruning=float((slot.actions - unpruned.actions).abs().max()),
                tokens_agree=pruned_tokens(pool, slot.selected.numpy())
                == tuple(result.pruned for result in expected),
                repeated=torch.equal(slot.actions, again.actions),
            )
            print(json.dumps(dataclasses.asdict(case)))


if __name__ == "__main__":
    chosen: Family = "pi0" if sys.argv[1] == "pi0" else "pi05"
    main(chosen)
