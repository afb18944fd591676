"""Single operations against openpi's: `units.npz`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.golden import load_arrays, require_file
from vlad_configs.models import GemmaConfig, ModelConfig, SiglipConfig
from vlad_engines.model import openpi_names
from vlad_engines.model.attention import MASK_FILL, additive_mask, block_mask, grouped_attention
from vlad_engines.model.flow import euler_schedule, time_embedding
from vlad_engines.model.gemma import AdaptiveRMSNorm, GemmaMlp, RMSNorm, gated_sum, split_modulations
from vlad_engines.model.observation import Observation
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.rope import apply_rope, rope_tables
from vlad_engines.model.siglip import SiglipMlp, SiglipTower

FLOAT32 = 2e-6
BF16 = 2.0**-7
"""Relative distance of neighbouring bfloat16 numbers: one rounding may tip the other way."""

_VISION = "paligemma_with_expert.paligemma.model.vision_tower.vision_model."


@pytest.fixture(autouse=True)
def _units_without_gradients() -> Iterator[None]:
    require_file("units.npz")
    with torch.no_grad():
        yield


def unit(name: str) -> Tensor:
    return torch.from_numpy(load_arrays("units.npz")[name].copy())


def numbers_in_names(pattern: str) -> list[int]:
    """The numbers that `pattern` catches in the names of the stored arrays."""
    found = [re.fullmatch(pattern, name) for name in load_arrays("units.npz")]
    numbers = [int(match[1]) for match in found if match]
    assert numbers
    return numbers


def assert_near(ours: Tensor, golden: Tensor, atol: float = FLOAT32, rtol: float = 0.0) -> None:
    assert ours.shape == golden.shape
    np.testing.assert_allclose(ours.float().numpy(), golden.float().numpy(), rtol=rtol, atol=atol)


def test_time_embedding() -> None:
    for width in numbers_in_names(r"sincos_(\d+)"):
        assert_near(time_embedding(unit("sincos_times"), width), unit(f"sincos_{width}"), 1e-7)


def test_euler_times_are_bitwise_those_of_the_original() -> None:
    for num_steps in numbers_in_names(r"euler_times_(\d+)"):
        times = torch.tensor(euler_schedule(num_steps).times)
        assert torch.equal(times, unit(f"euler_times_{num_steps}"))


def rope_unit(head_dim: int) -> tuple[Tensor, Tensor]:
    """Our cosines and sines of the stored positions; 0 for the -1 of masked tokens, which we never rotate."""
    positions = unit(f"rope{head_dim}_pos").clamp(min=0)
    cos, sin = rope_tables(head_dim, int(positions.max()) + 1)
    return cos[positions], sin[positions]


def test_rope() -> None:
    for head_dim in numbers_in_names(r"rope(\d+)_pos"):
        real = unit(f"rope{head_dim}_pos") >= 0
        cos, sin = rope_unit(head_dim)
        assert_near(torch.cat((cos, cos), -1)[real], unit(f"rope{head_dim}_cos")[real])
        assert_near(torch.cat((sin, sin), -1)[real], unit(f"rope{head_dim}_sin")[real])
        for heads in ("q", "k"):
            rotated = apply_rope(unit(f"rope{head_dim}_{heads}"), cos[:, None], sin[:, None])
            golden = unit(f"rope{head_dim}_{heads}_out")
            assert_near(rotated.transpose(1, 2)[real], golden.transpose(1, 2)[real])


def test_rope_in_bf16() -> None:
    for head_dim in numbers_in_names(r"rope(\d+)_cos_bf16"):
        real = unit(f"rope{head_dim}_pos") >= 0
        cos, sin = (table.bfloat16() for table in rope_unit(head_dim))
        assert torch.equal(torch.cat((cos, cos), -1)[real].float(), unit(f"rope{head_dim}_cos_bf16")[real])
        ours = apply_rope(unit(f"rope{head_dim}_q").bfloat16(), cos[:, None], sin[:, None])
        golden = unit(f"rope{head_dim}_q_out_bf16")
        assert torch.equal(ours.float().transpose(1, 2)[real], golden.transpose(1, 2)[real])


def test_rms_norm() -> None:
    x, norm = unit("rms_x"), RMSNorm(len(unit("rms_w")))
    norm.weight.copy_(unit("rms_w"))
    assert_near(norm(x)[0], unit("rms_y"))
    assert_near(norm(x.bfloat16())[0], unit("rms_y_bf16"), rtol=BF16)


def test_adaptive_rms_norm_and_its_gate() -> None:
    x, condition = unit("adarms_x"), unit("adarms_cond")
    norm = AdaptiveRMSNorm(x.shape[-1], condition.shape[-1])
    norm.dense.weight.copy_(unit("adarms_w"))
    norm.dense.bias.copy_(unit("adarms_b"))
    (modulation,) = split_modulations(norm.modulation(condition)[None])
    normed, gate = norm(x, modulation)
    assert_near(normed, unit("adarms_y"))
    assert_near(gate, unit("adarms_gate"))
    normed, gate = norm(x.bfloat16(), modulation)
    assert_near(normed, unit("adarms_y_bf16"), rtol=BF16)
    assert_near(gate, unit("adarms_gate_bf16"), rtol=BF16)


def test_gated_residual() -> None:
    assert_near(gated_sum(unit("gated_x"), unit("gated_y"), unit("adarms_gate")), unit("gated_out"))
    assert_near(gated_sum(unit("gated_x"), unit("gated_y"), None), unit("gated_x") + unit("gated_y"))


def test_gelu_of_siglip_is_the_tanh_form() -> None:
    mlp = SiglipMlp(1, 1)
    for layer in (mlp.fc1, mlp.fc2):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    assert_near(mlp(unit("act_x")[:, None])[:, 0], unit("gelu_tanh"))


def test_gelu_of_gemma_is_the_tanh_form() -> None:
    x, mlp = unit("act_x"), GemmaMlp(1, 1)
    for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        nn.init.ones_(layer.weight)
    assert_near(mlp(x[:, None])[:, 0], unit("gelu_tanh") * x, FLOAT32, rtol=FLOAT32)


def test_silu_of_the_time_condition() -> None:
    x = unit("act_x")
    gemma = GemmaConfig(width=len(x), depth=1, mlp_dim=4, num_heads=1, num_kv_heads=1, head_dim=2)
    siglip = SiglipConfig(width=4, depth=1, mlp_dim=4, num_heads=1)
    model = Pi0(ModelConfig("pi05", siglip, gemma, gemma, vocab_size=4))
    nn.init.zeros_(model.time_mlp_out.weight)
    model.time_mlp_out.bias.copy_(x)
    assert_near(model.adarms_condition(x[None])[0], unit("silu"))


def test_geglu() -> None:
    hidden, width = unit("mlp_gate_proj").shape
    mlp = GemmaMlp(width, hidden)
    mlp.load_state_dict({f"{name}_proj.weight": unit(f"mlp_{name}_proj") for name in ("gate", "up", "down")})
    assert_near(mlp(unit("mlp_x")), unit("mlp_y"), 1e-5)


def test_grouped_attention_even_where_a_query_sees_nothing() -> None:
    queries, keys, values = unit("attn_q"), unit("attn_k"), unit("attn_v")
    bias, golden = additive_mask(unit("attn_mask")), unit("attn_out").flatten(2)
    assert not unit("attn_mask").any(-1).all()
    assert_near(grouped_attention(queries, keys, values, bias), golden)
    ours = grouped_attention(queries.bfloat16(), keys.bfloat16(), values.bfloat16(), bias)
    assert_near(ours, unit("attn_out_bf16").flatten(2), atol=2 * BF16)


def test_attention_probabilities() -> None:
    queries, keys, golden = unit("attn_q"), unit("attn_k"), unit("attn_probs")
    length, head_dim = keys.shape[2:]
    one_hot = torch.eye(length, head_dim).expand(*keys.shape[:2], -1, -1)
    mixed = grouped_attention(queries, keys, one_hot, additive_mask(unit("attn_mask")))
    probabilities = mixed.unflatten(-1, (queries.shape[1], head_dim)).transpose(1, 2)
    assert_near(probabilities[..., :length], golden)


def test_block_masks() -> None:
    assert torch.equal(block_mask(unit("mask_pad"), unit("mask_att")), unit("mask_2d"))
    everything = torch.ones(unit("mask2_att").shape, dtype=torch.bool)
    assert torch.equal(block_mask(everything, unit("mask2_att")), unit("mask2_2d"))
    assert torch.tensor(MASK_FILL, dtype=torch.float32) == unit("mask_fill")


def test_leaving_padding_out_keeps_positions() -> None:
    mask, positions = unit("mask_pad"), unit("mask_pos")
    batch, length = mask.shape
    packed = Observation.from_padded(
        images=torch.zeros(batch, 0, 3, 14, 14),
        image_mask=torch.zeros(batch, 0, dtype=torch.bool),
        tokens=torch.arange(length).expand(batch, -1),
        token_mask=mask,
        state=torch.zeros(batch, 1),
    )
    for sample, count in enumerate(packed.token_counts):
        assert count == mask[sample].sum()
        assert torch.equal(positions[sample, packed.tokens[sample, :count]], torch.arange(count))


def test_siglip_layer_by_layer() -> None:
    weights = {
        openpi_names.parameter_name(_VISION + name.removeprefix("siglip_w:")): unit(name)
        for name in load_arrays("units.npz")
        if name.startswith("siglip_w:")
    }
    weights = {name.removeprefix("vision_tower."): weight for name, weight in weights.items()}
    patch = weights["patch_embedding.weight"]
    pixels = unit("siglip_pixels")
    mlp_dim = len(weights["layers.0.mlp.fc1.bias"])
    # Four heads: the golden page says so, no shape does.
    config = SiglipConfig(len(patch), 1, mlp_dim, 4, patch_size=patch.shape[-1], image_size=pixels.shape[-1])
    tower = SiglipTower(config)
    tower.load_state_dict(weights)
    embeddings = tower.embed_patches(pixels)
    assert_near(embeddings, unit("siglip_embeddings"), 5e-6)
    assert_near(tower.layers[0](embeddings), unit("siglip_layer0"), 5e-6)
    assert_near(tower(pixels), unit("siglip_post"), 5e-6)
