"""Splits that combine together compute what the last one computes alone."""

from __future__ import annotations

import pytest
import torch

from vlad_configs.models import ModelConfig
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage
from vlad_engines.backends.triton.weights import fuse_weights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.checkpoint.random_weights import RandomWeights

STEPS = 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@torch.inference_mode()
@pytest.mark.parametrize(
    ("config", "batch"),
    [
        (ModelConfig("pi05", action_horizon=10), 1),
        (ModelConfig("pi05", action_horizon=10), 8),
        (ModelConfig("pi0", action_horizon=50, max_token_len=48), 1),
    ],
    ids=["pi05", "pi05 batch 8", "pi0"],
)
def test_waiting_for_each_other_changes_nothing_but_rounding(config: ModelConfig, batch: int) -> None:
    device = torch.device("cuda")
    weights = fuse_weights(config, RandomWeights(config, device), num_steps=STEPS, device=device)
    workspace = Workspace(device)
    slot = Slot(config, SlotKey(batch, 2, 40), torch.bfloat16, workspace, STEPS)
    for values in (slot.keys, slot.values, slot.noise, slot.state):
        values.normal_()
    slot.lengths.fill_(slot.prefix - 3)
    slot.lengths[-1] -= 17
    waits = DenoiseStage(config, weights, slot, workspace, alone=True)
    last_combines = DenoiseStage(config, weights, slot, workspace, alone=False)

    def actions(stage: DenoiseStage) -> torch.Tensor:
        slot.actions.fill_(float("nan"))
        stage()
        return slot.actions.clone()

    # A share of a tile is summed in another order than the whole tile: a row's sum of squares may differ in
    # its last bit, and with it what is rounded to bf16 afterwards. What that may do to the actions of such a
    # network is measured: noise that is off by half a bf16 step, which the first product rounds away or up.
    alone, together = actions(last_combines), actions(waits)
    assert torch.isfinite(alone).all()
    noise = slot.noise.clone()
    slot.noise.mul_(1 + 2**-9)
    disturbed = actions(last_combines)
    slot.noise.copy_(noise)
    assert (together - alone).abs().mean() < (disturbed - alone).abs().mean()
    for _ in range(20):
        assert torch.equal(actions(waits), together)
        assert torch.equal(actions(last_combines), alone)
