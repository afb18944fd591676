"""Training-time action conditioning: every action carries its own time."""

from __future__ import annotations

import pytest
import torch

from tests.support.tiny_networks import padded_batch, random_weights, tiny_config
from vlad_configs.models import Family
from vlad_engines.model.pi0 import Pi0

FAMILIES: tuple[Family, ...] = ("pi0", "pi05")
FROZEN = torch.tensor([[True, True, False, False, False]])


def make(family: Family) -> Pi0:
    config = tiny_config(family)
    return Pi0.from_openpi_weights(config, random_weights(config))


def velocity(model: Pi0, conditioning: torch.Tensor) -> torch.Tensor:
    batch = padded_batch(model.config, [[True, True, False]], [7])
    observation = batch.observation()
    prefix = model.embed_prefix(observation)
    cache = model.compute_prefix_kv_cache(prefix)
    suffix = model.place_suffix(prefix.embeddings.shape[1])
    given = model.as_conditioning(conditioning)
    return model.denoise_step_with_cache(batch.noise, given, observation.state, cache, suffix)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_frozen_has_the_time_of_the_step_and_all_frozen_time_zero(family: Family) -> None:
    model = make(family)
    late, zero = (model.time_conditioning(torch.tensor([time])) for time in (0.7, 0.0))
    none = model.frozen_conditioning(late, zero, torch.zeros_like(FROZEN))
    everything = model.frozen_conditioning(late, zero, torch.ones_like(FROZEN))
    assert torch.equal(velocity(model, none), velocity(model, late))
    assert torch.equal(velocity(model, everything), velocity(model, zero))
    assert not torch.allclose(velocity(model, late), velocity(model, zero), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_action_is_conditioned_on_its_own_time(family: Family) -> None:
    model = make(family)
    config = model.config
    late, zero = (model.time_conditioning(torch.tensor([time])) for time in (0.7, 0.0))
    mixed = model.frozen_conditioning(late, zero, FROZEN)
    x = torch.randn(1, config.action_horizon, config.action_dim)
    state = torch.randn(1, config.action_dim)

    def look(conditioning: torch.Tensor) -> torch.Tensor:
        """Where time enters first: the action tokens of pi0, the first norm of pi0.5."""
        given = model.as_conditioning(conditioning)
        tokens = model.embed_suffix(x, given, state)
        if family == "pi05":
            tokens = model.expert.layers[0].input_layernorm(tokens, given[0])[0]  # type: ignore[operator]
        return tokens[:, -config.action_horizon :]

    assert torch.equal(look(mixed)[:, :2], look(zero)[:, :2])
    assert torch.equal(look(mixed)[:, 2:], look(late)[:, 2:])
