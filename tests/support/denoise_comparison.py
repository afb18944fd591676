"""One launch beside the chain of launches: the same slot, weights and noise, at full width, on a GPU."""

from __future__ import annotations

import dataclasses

import torch

from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.triton import denoise_loop
from vlad_engines.backends.triton.denoise_loop import DenoiseLoop
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage
from vlad_engines.backends.triton.weights import fuse_weights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.checkpoint.random_weights import RandomWeights

CAMERAS = 2
BUCKET = 200
STEPS = 10


@dataclasses.dataclass(frozen=True)
class Difference:
    """Between actions, which are of the order of 1."""

    chain_to_loop_mean: float
    chain_to_loop_max: float
    guided_to_loop_max: float
    repeated_exactly: bool
    stepwise_exactly: bool


@torch.inference_mode()
def compare_denoising(config: ModelConfig, *, prompt: int, pruning: TokenPruning | None = None) -> Difference:
    """Denoise over a cache of random numbers with both, plainly and guided.

    Args:
        pruning: of the slot; a third of its image tokens are masked then.
    """
    device = torch.device("cuda")
    weights = fuse_weights(
        config, RandomWeights(config, device), num_steps=STEPS, device=device, with_loop=True
    )
    workspace = Workspace(device)
    key = SlotKey(1, CAMERAS, BUCKET, pruning)
    assert denoise_loop.supports(config, key)
    slot = Slot(config, key, torch.bfloat16, workspace, STEPS)
    slot.keys.normal_()
    slot.values.normal_()
    slot.lengths.fill_(CAMERAS * config.siglip.num_tokens + prompt)
    if pruning is not None:
        slot.visible.fill_((slot.prefix - BUCKET) * 2 // 3 + prompt)
    slot.noise.normal_()
    chain, loop = (kind(config, weights, slot, workspace) for kind in (DenoiseStage, DenoiseLoop))

    def actions(stage: DenoiseStage | DenoiseLoop) -> torch.Tensor:
        stage()
        return slot.actions.clone()

    expected, result = actions(chain), actions(loop)
    repeated = all(torch.equal(actions(loop), result) for _ in range(20))
    *_, last = (step.clone() for step in loop.path())
    guidance = slot.guidance.device
    guidance.weights[:, :5].uniform_()
    guidance.target.normal_()
    guidance.gains.uniform_()
    guided, guided_result = actions(chain), actions(loop)
    difference = (result - expected).abs()
    return Difference(
        chain_to_loop_mean=float(difference.mean()),
        chain_to_loop_max=float(difference.max()),
        guided_to_loop_max=float((guided_result - guided).abs().max()),
        repeated_exactly=repeated,
        stepwise_exactly=torch.equal(last, result),
    )
