"""Runs the Triton stages in the interpreter beside the reference and prints how far they are apart.

`python -m tests.support.triton_comparison FAMILY [MISTAKE]` with TRITON_INTERPRET=1. Two samples with
prompts of different length share a batch, so that the masks matter. pi0's images come as floats, pi0.5's as
bytes. MISTAKE breaks one thing on purpose.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import torch

from vlad_configs.models import Family, GemmaConfig, ModelConfig, SiglipConfig
from vlad_engines.backends.triton.slot import Slot, SlotKey
from vlad_engines.backends.triton.stages import DenoiseStage, PrefixStage, VisionStage
from vlad_engines.backends.triton.weights import FusedWeights, from_pair_order, fuse_weights
from vlad_engines.backends.triton.workspace import Workspace
from vlad_engines.model import openpi_names
from vlad_engines.model.euler import euler_schedule
from vlad_engines.model.guided_flow import FlowGuidance, guided_path
from vlad_engines.model.observation import Observation
from vlad_engines.model.pi0 import Pi0

STEPS = 2
CAMERAS = 1
BUCKET = 8
PROMPTS = (8, 5)


def small_config(family: Family) -> ModelConfig:
    """A network of a few thousand parameters with 4 tokens an image."""
    return ModelConfig(
        family,
        siglip=SiglipConfig(64, 1, 80, 4, image_size=28),
        vlm=GemmaConfig(64, 2, 96, 4, 1, 16),
        expert=GemmaConfig(48, 2, 64, 4, 1, 16),
        vocab_size=64,
        action_dim=14,
        action_horizon=3,
        max_token_len=16,
    )


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights under which every part of the network matters."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in openpi_names.expected_tensors(config).items():
        fan_in = max(1, int(torch.tensor(shape[1:]).prod()))
        scale = 0.1 if len(shape) == 1 else fan_in**-0.5
        is_layer_norm = len(shape) == 1 and name.endswith("weight") and "layer_norm" in name
        weights[name] = torch.randn(shape, generator=generator) * scale + float(is_layer_norm)
    return weights


def break_on_purpose(mistake: str, weights: FusedWeights) -> FusedWeights:
    """The weights with one mistake."""
    if mistake == "position":
        return dataclasses.replace(weights, rope_cos=weights.rope_cos.roll(1, dims=0))
    assert mistake == "gate", mistake
    constants = dataclasses.replace(weights.constants, gate=torch.ones_like(weights.constants.gate))
    return dataclasses.replace(weights, constants=constants)


def random_guidance(config: ModelConfig, generator: torch.Generator) -> FlowGuidance:
    """The second sample continues an earlier chunk, the first one is sampled plainly."""
    shape = (len(PROMPTS), config.action_horizon, config.action_dim)
    weights = torch.rand(shape, generator=generator)
    weights[0], weights[1, -1] = 0.0, 0.0
    return FlowGuidance(
        weights=weights,
        target=torch.randn(shape, generator=generator),
        gains=torch.rand(len(PROMPTS), STEPS, generator=generator),
        frozen=torch.zeros(len(PROMPTS), dtype=torch.int32),
    )


def expected_guided(
    reference: Pi0, observation: Observation, noise: torch.Tensor, guidance: FlowGuidance
) -> torch.Tensor:
    """The reference's chunk under guidance."""
    prefix = reference.embed_prefix(observation)
    cache = reference.compute_prefix_kv_cache(prefix)
    suffix = reference.place_suffix(prefix.embeddings.shape[1], prefix.lengths)
    conditioning = [reference.as_conditioning(each) for each in reference.step_conditioning(STEPS)]

    def velocity(step: int, x_t: torch.Tensor) -> torch.Tensor:
        return reference.denoise_step_with_cache(x_t, conditioning[step], observation.state, cache, suffix)

    *_, actions = guided_path(velocity, noise, euler_schedule(STEPS), guidance)
    return actions


@torch.inference_mode()
def main(family: Family, mistake: str) -> None:
    config = small_config(family)
    weights = random_weights(config)
    device = torch.device("cpu")
    fused = fuse_weights(config, weights, num_steps=STEPS, device=device, precision="fp32")
    workspace = Workspace(device)
    as_floats = family == "pi0"
    slot = Slot(
        config,
        SlotKey(len(PROMPTS), CAMERAS, BUCKET),
        torch.float32,
        workspace,
        STEPS,
        image_dtype=torch.float32 if as_floats else torch.uint8,
    )
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, slot.images.shape, generator=generator, dtype=torch.uint8)
    unit_images = images.float() / 255 * 2 - 1
    slot.images.copy_(unit_images if as_floats else images)
    slot.tokens.copy_(torch.randint(config.vocab_size, slot.tokens.shape, generator=generator))
    slot.state.copy_(torch.randn(slot.state.shape, generator=generator))
    slot.noise.copy_(torch.randn(slot.noise.shape, generator=generator))
    image_rows = CAMERAS * config.siglip.num_tokens
    lengths = [image_rows + prompt for prompt in PROMPTS]
    slot.lengths.copy_(torch.tensor(lengths))
    observation = Observation(
        unit_images.permute(0, 3, 1, 2), (CAMERAS,) * len(PROMPTS), slot.tokens, PROMPTS, slot.state
    )
    reference = Pi0.from_openpi_weights(config, weights)
    prefix = reference.embed_prefix(observation)
    cache = reference.compute_prefix_kv_cache(prefix)
    expected = reference.sample_actions(observation, slot.noise.clone(), STEPS)
    guidance = random_guidance(config, generator)
    guided = expected_guided(reference, observation, slot.noise.clone(), guidance)

    if mistake:
        fused = break_on_purpose(mistake, fused)
    VisionStage(config, fused, slot, workspace)()
    vision_tokens = slot.image_tokens.clone()
    PrefixStage(config, fused, slot, workspace)()
    denoise = DenoiseStage(config, fused, slot, workspace)
    denoise()
    plain_actions = slot.actions.clone()
    for mine, theirs in zip(slot.guidance.device, guidance, strict=True):
        mine.copy_(theirs)
    denoise()

    def cache_difference(mine: torch.Tensor, theirs: torch.Tensor) -> float:
        return max(
            float((mine[:, sample, :length] - theirs[:, sample, 0, :length]).abs().max())
            for sample, length in enumerate(lengths)
        )

    print(
        json.dumps(
            {
                "vision_tokens": float((vision_tokens - prefix.embeddings[:, :image_rows]).abs().max()),
                "prefix_keys": cache_difference(from_pair_order(slot.keys), cache.keys),
                "prefix_values": cache_difference(slot.values, cache.values),
                "actions": float((plain_actions - expected).abs().max()),
                "guided_actions": float((slot.actions - guided).abs().max()),
                "guided_by": float((guided - expected).abs().max()),
            }
        )
    )


if __name__ == "__main__":
    chosen: Family = "pi0" if sys.argv[1] == "pi0" else "pi05"
    main(chosen, sys.argv[2] if len(sys.argv) > 2 else "")
