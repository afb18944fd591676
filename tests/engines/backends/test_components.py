"""Slots and the components that work in them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.support.tiny_networks import model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import EngineError
from vlad_engines.backends.pytorch import components
from vlad_engines.backends.pytorch.components import make_components
from vlad_engines.components import Components, Slot
from vlad_engines.model.pi0 import Pi0
from vlad_engines.processing.guidance import Guidance

CONFIG = tiny_config("pi0")
CPU = torch.device("cpu")


def make_parts() -> tuple[Components, Slot]:
    model = Pi0.from_openpi_weights(CONFIG, random_weights(CONFIG))
    return make_components(model, num_steps=2, enable_kv_cache=True), Slot(CONFIG, torch.float32, CPU, 2)


def load(slot: Slot, request_id: int, image_mask: list[bool], prompt_length: int) -> None:
    batch = padded_batch(CONFIG, [image_mask], [prompt_length], seed=request_id)
    slot.load(request_id, model_inputs(batch), batch.noise[0].numpy())


@pytest.mark.parametrize("stage", Components._fields)
def test_every_component_refuses_a_slot_that_holds_another_request(stage: str) -> None:
    parts, slot = make_parts()
    component = getattr(parts, stage)
    with pytest.raises(EngineError, match="slot holds request None, a stage expected request 1"):
        component(slot, 1)
    load(slot, 1, [True, True, False], 5)
    with torch.inference_mode():
        component(slot, 1)
    load(slot, 2, [True, True, False], 5)
    with pytest.raises(EngineError, match="slot holds request 2, a stage expected request 1"):
        component(slot, 1)


@pytest.mark.parametrize(("worth", "threads"), [(1, 2), (10**9, 1)])
def test_small_denoising_runs_in_one_thread_and_leaves_the_others_to_the_rest(
    worth: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "WORTH_A_THREAD", worth)
    model = Pi0.from_openpi_weights(CONFIG, random_weights(CONFIG))
    parts = make_components(model, num_steps=2, enable_kv_cache=True)
    slot = Slot(CONFIG, torch.float32, CPU, 2)
    load(slot, 1, [True, True, False], 5)
    seen = []
    model.action_out_proj.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            for part in parts:
                part(slot, 1)
        assert seen == [threads, threads]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_refused_request_does_not_take_the_slot() -> None:
    _, slot = make_parts()
    load(slot, 1, [True, True, False], 5)
    batch = padded_batch(CONFIG, [[True, True, False]], [5])
    with pytest.raises(EngineError):
        slot.load(2, model_inputs(batch), np.zeros((1, 1), np.float32))
    slot.require(1)


def test_buffers_never_move() -> None:
    _, slot = make_parts()

    def addresses() -> list[int]:
        views = (slot.pixels, slot.image_tokens, slot.prompt_tokens, slot.embeddings, *slot.cache)
        return [view.data_ptr() for view in (*views, slot.state, slot.noise, slot.actions)]

    load(slot, 1, [True, True, True], 12)
    before = addresses()
    load(slot, 2, [False, True, False], 3)
    assert addresses() == before


def test_a_slot_holds_what_was_loaded_and_nothing_between_image_and_prompt_tokens() -> None:
    _, slot = make_parts()
    batch = padded_batch(CONFIG, [[True, False, True]], [5])
    slot.load(3, model_inputs(batch), batch.noise[0].numpy())
    tokens_per_camera, width = CONFIG.siglip.num_tokens, CONFIG.vlm.width
    assert slot.prefix_length == 2 * tokens_per_camera + 5
    torch.testing.assert_close(slot.pixels, batch.images[0, [0, 2]])
    assert slot.prompt_tokens.tolist() == batch.tokens[0, :5].tolist()
    assert torch.equal(slot.noise, batch.noise)
    assert torch.equal(slot.state, batch.state)
    slot.image_tokens.fill_(1.0)
    slot.prompt_embeddings.fill_(2.0)
    assert slot.embeddings.shape == (1, slot.prefix_length, width)
    assert slot.embeddings[0, :, 0].tolist() == [1.0] * 2 * tokens_per_camera + [2.0] * 5


def test_a_slot_guides_the_request_that_asks_for_it_and_not_the_next_one() -> None:
    _, slot = make_parts()
    batch = padded_batch(CONFIG, [[True, True, False]], [5])
    rows = np.ones((CONFIG.action_horizon, CONFIG.action_dim), np.float32)
    guidance = Guidance("guided_identity", rows, 2 * rows, np.ones(2, np.float32))
    inputs, noise = model_inputs(batch), batch.noise[0].numpy()
    slot.load(1, dataclasses.replace(inputs, guidance=guidance), noise)
    assert slot.guidance_mode == "guided_identity"
    assert (slot.guidance.target == 2).all()
    slot.load(2, inputs, noise)
    assert slot.guidance_mode is None
    assert not any(part.any() for part in slot.guidance)
    misfit = dataclasses.replace(guidance, gains=np.ones(3, np.float32))
    with pytest.raises(EngineError, match="with 2 gains"):
        slot.load(3, dataclasses.replace(inputs, guidance=misfit), noise)
    slot.require(2)


def test_prefix_writes_the_cache_that_denoise_reads() -> None:
    parts, slot = make_parts()
    load(slot, 1, [True, True, False], 5)
    with torch.inference_mode():
        parts.vision(slot, 1)
        parts.prefix(slot, 1)
        parts.denoise(slot, 1)
        actions = slot.actions.clone()
        for part in slot.cache:
            part.mul_(0.5)
        parts.denoise(slot, 1)
    assert actions.isfinite().all()
    assert not torch.allclose(slot.actions, actions, atol=1e-3)
