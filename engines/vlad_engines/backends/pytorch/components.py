"""The three components, made from the reference network. See `vlad_engines.components` for their contract."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vlad_engines.components import Components, Slot
from vlad_engines.model.flow import euler_path, euler_schedule
from vlad_engines.model.pi0 import Pi0, Prefix


def make_components(model: Pi0, num_steps: int, enable_kv_cache: bool) -> Components:
    """Cut `model`; without KV cache, every denoise step computes the prefix again."""
    return Components(TorchVision(model), TorchPrefix(model), TorchDenoise(model, num_steps, enable_kv_cache))


class TorchVision:
    """All cameras in one batch."""

    def __init__(self, model: Pi0) -> None:
        self._model = model

    def __call__(self, slot: Slot, request_id: int) -> None:
        """See `components.Vision`."""
        slot.require(request_id)
        slot.image_tokens.copy_(self._model.embed_images(slot.pixels).flatten(0, 1))


class TorchPrefix:
    """Embeds the prompt behind the image tokens and runs the VLM."""

    def __init__(self, model: Pi0) -> None:
        self._model = model

    def __call__(self, slot: Slot, request_id: int) -> None:
        """See `components.Prefix`."""
        slot.require(request_id)
        slot.prompt_embeddings.copy_(self._model.embed_prompt(slot.prompt_tokens))
        fill_cache(self._model, slot)


class TorchDenoise:
    """Runs the Euler steps. What depends on time alone is computed once, here, for all requests."""

    def __init__(self, model: Pi0, num_steps: int, enable_kv_cache: bool) -> None:
        self._model = model
        self._enable_kv_cache = enable_kv_cache
        self._schedule = euler_schedule(num_steps)
        with torch.no_grad():
            self._conditioning = model.step_conditioning(num_steps).unbind()

    def __call__(self, slot: Slot, request_id: int) -> None:
        """See `components.Denoise`."""
        slot.require(request_id)
        for x_t in self.path(slot):
            slot.actions.copy_(x_t)

    def path(self, slot: Slot) -> Iterator[Tensor]:
        """The actions `[1, H, A]` after every Euler step."""
        model, cache = self._model, slot.cache
        suffix = model.place_suffix(slot.prefix_length)

        def velocity(step: int, x_t: Tensor) -> Tensor:
            if not self._enable_kv_cache:
                fill_cache(model, slot)
            return model.denoise_step_with_cache(x_t, self._conditioning[step], slot.state, cache, suffix)

        return euler_path(velocity, slot.noise, self._schedule)


def fill_cache(model: Pi0, slot: Slot) -> None:
    """Compute K and V of the slot's embeddings into the slot."""
    model.compute_prefix_kv_cache(Prefix(slot.embeddings, lengths=None), out=slot.cache)
