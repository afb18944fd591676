"""Networks small enough to run hundreds of times, and observations for them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from vlad_configs.models import CAMERA_SLOTS, Family, GemmaConfig, ModelConfig, SiglipConfig
from vlad_engines.model import openpi_names
from vlad_engines.model.observation import Observation
from vlad_engines.processing.model_inputs import ModelInputs


def tiny_config(family: Family) -> ModelConfig:
    """Four image tokens per camera, prompts of up to 12 tokens, two kv heads, no two widths alike."""
    return ModelConfig(
        family=family,
        siglip=SiglipConfig(width=24, depth=2, mlp_dim=40, num_heads=2, image_size=28),
        vlm=GemmaConfig(width=40, depth=3, mlp_dim=56, num_heads=4, num_kv_heads=2, head_dim=16),
        expert=GemmaConfig(width=32, depth=3, mlp_dim=48, num_heads=4, num_kv_heads=2, head_dim=16),
        vocab_size=64,
        action_dim=6,
        action_horizon=5,
        max_token_len=12,
    )


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, Tensor]:
    """Float32 weights under their openpi names, large enough that every part of the network matters."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in openpi_names.expected_tensors(config).items():
        scale = 0.3 if len(shape) == 1 else 1.5 / math.sqrt(math.prod(shape[1:]))
        weights[name] = scale * torch.randn(shape, generator=generator)
    return weights


@dataclasses.dataclass(frozen=True)
class PaddedBatch:
    """Observations as openpi lays them out, masked parts included; arguments of `Observation.from_padded`."""

    images: Tensor
    image_mask: Tensor
    tokens: Tensor
    token_mask: Tensor
    state: Tensor
    noise: Tensor

    def observation(self) -> Observation:
        """Only what is really there."""
        return Observation.from_padded(self.images, self.image_mask, self.tokens, self.token_mask, self.state)

    def sample(self, index: int) -> PaddedBatch:
        """One sample as a batch of its own."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return PaddedBatch(**{name: value[index : index + 1] for name, value in values.items()})


def padded_batch(
    config: ModelConfig, image_masks: list[list[bool]], prompt_lengths: list[int], seed: int = 0
) -> PaddedBatch:
    """Random observations. Masked cameras show pictures too, and padding holds token ids."""
    generator = torch.Generator().manual_seed(seed)
    batch, size = len(image_masks), config.siglip.image_size
    bytes_ = torch.randint(0, 256, (batch, len(CAMERA_SLOTS), 3, size, size), generator=generator)
    action_shape = (batch, config.action_horizon, config.action_dim)
    return PaddedBatch(
        images=bytes_.float() / 255.0 * 2.0 - 1.0,
        image_mask=torch.tensor(image_masks),
        tokens=torch.randint(0, config.vocab_size, (batch, config.max_token_len), generator=generator),
        token_mask=torch.arange(config.max_token_len) < torch.tensor(prompt_lengths)[:, None],
        state=torch.randn(batch, config.action_dim, generator=generator),
        noise=torch.randn(action_shape, generator=generator),
    )


def model_inputs(batch: PaddedBatch) -> ModelInputs:
    """The first sample of a batch as the processing hands it over, with uint8 images."""
    present = batch.image_mask[0]
    images = ((batch.images[0, present] + 1.0) / 2.0 * 255.0).round().to(torch.uint8)
    return ModelInputs(
        cameras=tuple(camera for camera, real in zip(CAMERA_SLOTS, present, strict=True) if real),
        images=images.permute(0, 2, 3, 1).numpy(),
        tokens=batch.tokens[0].numpy(),
        token_mask=batch.token_mask[0].numpy(),
        state=batch.state[0].double().numpy(),
        robot_state=np.zeros(0),
    )
