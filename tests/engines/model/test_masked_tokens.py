"""Masked cameras and padded prompt tokens are not computed, and that changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.dense_reference import dense_velocity
from tests.support.tiny_networks import padded_batch, random_weights, tiny_config
from vlad_configs.models import Family
from vlad_engines.model.pi0 import Pi0

FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
MASKS = [[True, False, True], [True, True, True], [False, True, False]]
LENGTHS = [7, 3, 12]


def make_model(family: Family) -> Pi0:
    config = tiny_config(family)
    return Pi0.from_openpi_weights(config, random_weights(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_leaving_masked_tokens_out_equals_computing_and_masking_them(family: Family) -> None:
    model = make_model(family)
    batch = padded_batch(model.config, MASKS, LENGTHS)
    time = torch.tensor([1.0, 0.35, 0.7])
    observation = batch.observation()
    with torch.inference_mode():
        prefix = model.embed_prefix(observation)
        ours = model.denoise_step_with_cache(
            batch.noise,
            model.as_conditioning(model.time_conditioning(time)),
            batch.state,
            model.compute_prefix_kv_cache(prefix),
            model.place_suffix(prefix.embeddings.shape[1], prefix.lengths),
        )
    reference = dense_velocity(model, batch, batch.noise, time)
    assert reference.std() > 0.1
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_real_images_reach_siglip(family: Family) -> None:
    model = make_model(family)
    seen: list[int] = []
    model.vision_tower.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    batch = padded_batch(model.config, MASKS, LENGTHS)
    model.sample_actions(batch.observation(), batch.noise, num_steps=2)
    assert seen == [6]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_real_tokens_reach_the_vlm(family: Family) -> None:
    model = make_model(family)
    seen: list[tuple[int, ...]] = []
    layer = model.vlm.layers[0]
    layer.input_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    batch = padded_batch(model.config, [MASKS[0]], [LENGTHS[0]])
    model.sample_actions(batch.observation(), batch.noise, num_steps=2)
    assert seen == [(1, 2 * model.config.siglip.num_tokens + 7, model.config.vlm.width)]


@pytest.mark.parametrize("family", FAMILIES)
def test_of_the_last_prefix_layer_only_keys_and_values_are_computed(family: Family) -> None:
    model = make_model(family)
    unread = [model.vlm.norm, model.vlm.layers[-1].mlp, model.vlm.layers[-1].self_attn.q_proj]
    calls: list[object] = []
    for module in unread:
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    batch = padded_batch(model.config, MASKS, LENGTHS)
    model.sample_actions(batch.observation(), batch.noise, num_steps=2)
    assert calls == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_masked_camera_shows_changes_nothing(family: Family) -> None:
    model = make_model(family)
    batch = padded_batch(model.config, MASKS, LENGTHS)
    other = torch.where(batch.image_mask[:, :, None, None, None], batch.images, -batch.images)
    changed = dataclasses.replace(batch, images=other)
    assert not torch.equal(other, batch.images)
    expected = model.sample_actions(batch.observation(), batch.noise, num_steps=3)
    assert torch.equal(model.sample_actions(changed.observation(), batch.noise, num_steps=3), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_prompt_tokens_change_nothing(family: Family) -> None:
    model = make_model(family)
    batch = padded_batch(model.config, MASKS, LENGTHS)
    changed = dataclasses.replace(batch, tokens=batch.tokens.where(batch.token_mask, 63 - batch.tokens))
    assert not torch.equal(changed.tokens, batch.tokens)
    expected = model.sample_actions(batch.observation(), batch.noise, num_steps=3)
    assert torch.equal(model.sample_actions(changed.observation(), batch.noise, num_steps=3), expected)


def test_a_real_token_behind_padding_is_not_lost() -> None:
    model = make_model("pi05")
    batch = padded_batch(model.config, [[True, True, False]], [5])
    order = torch.tensor([5, 0, 1, 6, 2, 3, 7, 8, 4, 9, 10, 11])
    spread = dataclasses.replace(batch, tokens=batch.tokens[:, order], token_mask=batch.token_mask[:, order])
    expected = model.sample_actions(batch.observation(), batch.noise, num_steps=2)
    assert torch.equal(model.sample_actions(spread.observation(), batch.noise, num_steps=2), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sample_without_any_camera_is_possible(family: Family) -> None:
    model = make_model(family)
    batch = padded_batch(model.config, [[False, False, False]], [4])
    reference = dense_velocity(model, batch, batch.noise, torch.ones(1))
    ours = model.sample_actions(batch.observation(), batch.noise, num_steps=1)
    torch.testing.assert_close(ours, batch.noise - reference, rtol=0, atol=1e-5)
