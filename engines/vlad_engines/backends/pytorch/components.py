"""The three components, made from the reference network. See `vlad_engines.components` for their contract."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from vlad_configs.pruning import TokenPruning
from vlad_engines.components import Components, Slot
from vlad_engines.model.flow import euler_schedule
from vlad_engines.model.guided_flow import guided_path
from vlad_engines.model.pi0 import Pi0, Prefix
from vlad_engines.model.token_pruner import prune_prefix

WORTH_A_THREAD = 1_000_000
"""Multiplications of a product from which on two threads were faster than one. An MLP of 0.7 million took
136 us in one and 292 in two, of 2.0 million 313 and 228 (`python -m benchmarks.denoise_threads`, two cores of
a Xeon). On a busy machine threads wait for each other far longer."""


def make_components(
    model: Pi0, num_steps: int, enable_kv_cache: bool, pruning: TokenPruning | None = None
) -> Components:
    """Cut `model`; without KV cache, every denoise step computes the prefix again."""
    denoise = TorchDenoise(model, num_steps, enable_kv_cache)
    return Components(TorchVision(model), TorchPrefix(model, pruning), denoise)


class TorchVision:
    """All cameras in one batch."""

    def __init__(self, model: Pi0) -> None:
        self._model = model

    def __call__(self, slot: Slot, request_id: int) -> None:
        """See `components.Vision`."""
        slot.require(request_id)
        slot.image_tokens.copy_(self._model.embed_images(slot.pixels).flatten(0, 1))


class TorchPrefix:
    """Embeds the prompt behind the image tokens, of which some may be left out, and runs the VLM."""

    def __init__(self, model: Pi0, pruning: TokenPruning | None) -> None:
        self._model = model
        self._pruning = pruning

    def __call__(self, slot: Slot, request_id: int) -> None:
        """See `components.Prefix`."""
        slot.require(request_id)
        prompt = self._model.embed_prompt(slot.prompt_tokens)
        if self._pruning is None:
            slot.prompt_embeddings.copy_(prompt)
        elif slot.image_tokens.shape[0]:
            slot.pruned = prune_prefix(slot.image_tokens[None], prompt[None], self._pruning)
        else:
            slot.prompt_embeddings.copy_(prompt)
            slot.pruned = None
        fill_cache(self._model, slot)


class TorchDenoise:
    """Runs the Euler steps. What depends on time alone is computed once, here, for all requests."""

    def __init__(self, model: Pi0, num_steps: int, enable_kv_cache: bool) -> None:
        self._model = model
        self._enable_kv_cache = enable_kv_cache
        self._schedule = euler_schedule(num_steps)
        with torch.no_grad():
            self._of_times = model.step_conditioning(num_steps).unbind()
            self._at_zero = model.time_conditioning(torch.zeros(1, device=model.rope_cos.device))
            self._conditioning = [model.as_conditioning(each) for each in self._of_times]
        self._in_one_thread = _gains_nothing_from_threads(model)

    def __call__(self, slot: Slot, request_id: int) -> None:
        """See `components.Denoise`."""
        slot.require(request_id)
        # Gradients cannot pass through tensors of inference mode, not even through constants.
        through_network = slot.guidance_mode == "guided_vjp"
        threads = one_thread() if self._in_one_thread else contextlib.nullcontext()
        with threads, torch.inference_mode(not through_network), torch.no_grad():
            for x_t in self.path(slot):
                slot.actions.copy_(x_t)

    def path(self, slot: Slot) -> Iterator[Tensor]:
        """The actions `[1, H, A]` after every Euler step."""
        model, cache = self._model, slot.cache
        prefix = slot_prefix(slot)
        suffix = model.place_suffix(slot.prefix_length, prefix.lengths, prefix.suffix_start)
        frozen = slot.guidance.frozen_actions() if slot.guidance_mode == "trained" else None

        def velocity(step: int, x_t: Tensor) -> Tensor:
            if not self._enable_kv_cache:
                fill_cache(model, slot)
            conditioning = self._conditioning[step]
            if frozen is not None:
                of_time = model.frozen_conditioning(self._of_times[step], self._at_zero, frozen)
                conditioning = model.as_conditioning(of_time)
            return model.denoise_step_with_cache(x_t, conditioning, slot.state, cache, suffix)

        return guided_path(
            velocity,
            slot.noise,
            self._schedule,
            slot.guidance,
            through_network=slot.guidance_mode == "guided_vjp",
        )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gains_nothing_from_threads(model: Pi0) -> bool:
    """Whether a product of the expert takes less time on a CPU than threads take to meet."""
    expert = model.config.expert
    products = model.suffix_length * expert.width * expert.mlp_dim
    return model.rope_cos.device.type == "cpu" and products < WORTH_A_THREAD


def fill_cache(model: Pi0, slot: Slot) -> None:
    """Compute K and V of the slot's prefix into the slot."""
    model.compute_prefix_kv_cache(slot_prefix(slot), out=slot.cache)


def slot_prefix(slot: Slot) -> Prefix:
    """The prefix of the present request, pruned or as it lies in the slot."""
    return Prefix(slot.embeddings, lengths=None) if slot.pruned is None else slot.pruned.prefix
