"""Sampling: caching, batching and repeating give the same actions."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_networks import padded_batch, random_weights, tiny_config
from vlad_configs.models import Family
from vlad_engines.model.pi0 import KVCache, Pi0
from vlad_engines.model.precision import Precision

FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
MASKS = [[True, False, True], [True, True, True]]
LENGTHS = [7, 12]


def make_model(family: Family, precision: Precision = "fp32") -> Pi0:
    config = tiny_config(family)
    return Pi0.from_openpi_weights(config, random_weights(config), precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_recomputing_the_prefix_gives_the_actions_of_the_cache(family: Family, precision: Precision) -> None:
    model = make_model(family, precision)
    calls: list[int] = []
    model.vlm.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    batch = padded_batch(model.config, MASKS, LENGTHS)
    cached = model.sample_actions(batch.observation(), batch.noise, num_steps=4)
    assert len(calls) == 1
    recomputed = model.sample_actions(batch.observation(), batch.noise, num_steps=4, enable_kv_cache=False)
    assert len(calls) >= 1 + 4
    assert torch.equal(cached, recomputed)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_noise_gives_bitwise_the_same_actions(family: Family, precision: Precision) -> None:
    model = make_model(family, precision)
    batch = padded_batch(model.config, MASKS, LENGTHS)
    first = model.sample_actions(batch.observation(), batch.noise)
    assert first.dtype == torch.float32
    assert torch.equal(first, model.sample_actions(batch.observation(), batch.noise))
    assert not torch.allclose(first, model.sample_actions(batch.observation(), -batch.noise), atol=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_with_different_masks_equals_its_samples_alone(family: Family) -> None:
    model = make_model(family)
    batch = padded_batch(model.config, MASKS, LENGTHS)
    together = model.sample_actions(batch.observation(), batch.noise, num_steps=5)
    for index in range(2):
        alone = batch.sample(index)
        actions = model.sample_actions(alone.observation(), alone.noise, num_steps=5)
        torch.testing.assert_close(together[index : index + 1], actions, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_equal_lengths_needs_no_padding(family: Family) -> None:
    model = make_model(family)
    batch = padded_batch(model.config, [[True, False, True], [True, True, False]], [7, 7])
    assert model.embed_prefix(batch.observation()).lengths is None
    together = model.sample_actions(batch.observation(), batch.noise, num_steps=2)
    alone = batch.sample(1)
    actions = model.sample_actions(alone.observation(), alone.noise, num_steps=2)
    torch.testing.assert_close(together[1:], actions, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_conditioning_of_all_steps_at_once_equals_that_of_each_time(family: Family) -> None:
    model = make_model(family)
    with torch.inference_mode():
        both = model.time_conditioning(torch.tensor([1.0, 0.5]))
        steps = model.step_conditioning(2)
    sample_axis = 0 if family == "pi0" else 2
    assert len(steps) == 2
    for index, step in enumerate(steps):
        torch.testing.assert_close(both.narrow(sample_axis, index, 1), step, rtol=0, atol=1e-5)


def test_cache_is_written_into_given_buffers() -> None:
    model = make_model("pi05")
    batch = padded_batch(model.config, MASKS, LENGTHS)
    with torch.inference_mode():
        prefix = model.embed_prefix(batch.observation())
        cache = model.compute_prefix_kv_cache(prefix)
        # Views of longer buffers, as in a slot.
        buffers = KVCache(*(torch.full((*t.shape[:3], 99, t.shape[4]), 7.0) for t in cache))
        views = KVCache(*(t[:, :, :, : prefix.embeddings.shape[1]] for t in buffers))
        assert model.compute_prefix_kv_cache(prefix, out=views) is views
    for ours, expected, buffer in zip(views, cache, buffers, strict=True):
        assert torch.equal(ours, expected)
        assert (buffer[:, :, :, ours.shape[3] :] == 7.0).all()


def test_a_denoise_step_leaves_the_cache_alone() -> None:
    model = make_model("pi0")
    batch = padded_batch(model.config, MASKS, LENGTHS)
    with torch.inference_mode():
        prefix = model.embed_prefix(batch.observation())
        cache = model.compute_prefix_kv_cache(prefix)
        before = KVCache(cache.keys.clone(), cache.values.clone())
        suffix = model.place_suffix(prefix.embeddings.shape[1], prefix.lengths)
        model.denoise_step_with_cache(
            batch.noise,
            model.as_conditioning(model.time_conditioning(torch.ones(1))),
            batch.state,
            cache,
            suffix,
        )
    assert torch.equal(cache.keys, before.keys)
    assert torch.equal(cache.values, before.values)


def test_pi05_does_not_look_at_the_state_and_pi0_does() -> None:
    for family, changes in (("pi0", True), ("pi05", False)):
        model = make_model(family)  # type: ignore[arg-type]
        batch = padded_batch(model.config, MASKS, LENGTHS)
        actions = model.sample_actions(batch.observation(), batch.noise, num_steps=2)
        batch.state.mul_(-1.0)
        other = model.sample_actions(batch.observation(), batch.noise, num_steps=2)
        assert torch.equal(actions, other) != changes


def test_layers_do_not_share_weights() -> None:
    model = make_model("pi05")
    batch = padded_batch(model.config, [[True, True, True]], [12])
    with torch.inference_mode():
        keys, _ = model.compute_prefix_kv_cache(model.embed_prefix(batch.observation()))
    for first in range(len(keys)):
        for second in range(first):
            assert not torch.allclose(keys[first], keys[second], atol=0.1)
