"""Runs the pruned Triton stages in the interpreter beside the pytorch backend.

`python -m tests.support.triton_pruning FAMILY` with TRITON_INTERPRET=1. Two requests with prompts of
different length share a batch. Prints a line of JSON for each of `CASES`: how far apart
the two are.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence

import numpy as np
import torch

from tests.support.triton_comparison import random_weights, small_config
from vlad_configs.models import CAMERA_SLOTS, Family, ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.chunks import pruned_tokens
from vlad_engines.backends.registry import create_backend
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage, PrefixStage, VisionStage
from vlad_engines.backends.triton.weights import FusedWeights, fuse_weights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.processing.model_inputs import ModelInputs

STEPS = 1
BUCKET = 8
PROMPTS = (8, 5)

CASES: dict[Family, list[tuple[int, TokenPruning]]] = {
    "pi05": [
        (2, TokenPruning(5)),
        (2, TokenPruning(5, mode="union", positions="compact")),
        (3, TokenPruning(keep_ratio=1.0)),
    ],
    "pi0": [
        (3, TokenPruning(5, mode="union")),
    ],
}
"""Cameras, and what is kept."""

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
class Result:
    """How one case ended.

    Attributes:
        difference: largest absolute one to the actions of the pytorch backend.
        by_pruning: largest one to the unpruned actions, exactly 0 for the same bits; only where all are kept.
        tokens_agree: as many are kept and voted for as in the pytorch backend.
    """

    difference: float
    by_pruning: float | None
    tokens_agree: bool


@torch.inference_mode()
def run_case(family: Family, cameras: int, pruning: TokenPruning) -> Result:
    config = small_config(family)
    weights = random_weights(config)
    fused = fuse_weights(config, weights, num_steps=STEPS, device=torch.device("cpu"), precision="fp32")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(PROMPTS), config.action_horizon, config.action_dim, generator=generator)
    requests = requests_with(config, cameras)
    slot = run_stages(config, fused, requests, noise, SlotKey(len(PROMPTS), cameras, BUCKET, pruning))
    by_pruning = None
    if pruning.keep_ratio == 1.0:
        unpruned = run_stages(config, fused, requests, noise, SlotKey(len(PROMPTS), cameras, BUCKET))
        by_pruning = float((slot.actions - unpruned.actions).abs().max())
    backend = create_backend(
        "pytorch", config, weights, BackendOptions(STEPS, "fp32", "cpu", pruning=pruning)
    )
    expected = [backend.infer(*pair) for pair in zip(requests, noise.numpy(), strict=True)]
    assert slot.selected is not None
    actions = torch.from_numpy(np.stack([result.actions for result in expected]))
    tokens = pruned_tokens(slot.image_rows, slot.selected.numpy())
    return Result(
        float((slot.actions - actions).abs().max()),
        by_pruning,
        tokens == tuple(result.pruned for result in expected),
    )


def main(family: Family) -> None:
    for cameras, pruning in CASES[family]:
        print(json.dumps(dataclasses.asdict(run_case(family, cameras, pruning))))


if __name__ == "__main__":
    main("pi0" if sys.argv[1] == "pi0" else "pi05")
