"""Token pruning: the scores, which tokens stay, where they stand, and what must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.tiny_networks import model_inputs, padded_batch, random_weights, tiny_config
from vlad_configs.errors import ConfigError
from vlad_configs.models import Family
from vlad_configs.pruning import Positions, TokenPruning
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import create_backend
from vlad_engines.fidelity.reference import trace_model
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.token_pruner import (
    importance_scores,
    prune_prefix,
    select_tokens,
    straight_through,
)


def tokens(count: int = 12, width: int = 24, batch: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # A common direction, as embeddings have it: without one nearly every token wins its own vote.
    common = 2 * torch.randn(1, 1, width, generator=generator)
    images = torch.randn(batch, count, width, generator=generator) + common
    return images, torch.randn(batch, 5, width, generator=generator) + common


def votes_by_hand(scores: Tensor) -> list[list[int]]:
    """Votes of each token, counted in plain Python; the first of equal scores gets them."""
    counts = []
    for sample in scores.tolist():
        votes = [0] * len(sample)
        for row in sample:
            votes[row.index(max(row))] += 1
        counts.append(votes)
    return counts


def test_scores_are_those_of_the_formula_in_float64() -> None:
    images, prompt = tokens()
    mask = torch.arange(5) < torch.tensor([[5], [3]])

    def rms(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)  # type: ignore[no-any-return]

    for sample, length in enumerate((5, 3)):
        p, t = rms(images[sample].double().numpy()), rms(prompt[sample, :length].double().numpy())
        logits = p @ t.T / np.sqrt(24)
        attention = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected = rms(attention @ t) @ p.T / np.sqrt(24)
        actual = importance_scores(images, prompt, mask)[sample]
        np.testing.assert_allclose(actual.numpy(), expected, atol=1e-4)


def test_the_union_is_every_token_with_a_vote_and_nothing_else() -> None:
    scores = importance_scores(*tokens(40, batch=3))
    selection = select_tokens(scores, TokenPruning(keep_tokens=40, mode="union"))
    for sample, votes in enumerate(votes_by_hand(scores)):
        voted = [index for index, count in enumerate(votes) if count]
        assert 1 < len(voted) < 40
        kept = int(selection.kept[sample])
        assert selection.indices[sample, :kept].tolist() == voted
        assert int(selection.union[sample]) == len(voted)


def test_a_fixed_number_keeps_the_most_voted_in_their_order() -> None:
    scores = importance_scores(*tokens(40, batch=3))
    selection = select_tokens(scores, TokenPruning(keep_tokens=6))
    for sample, votes in enumerate(votes_by_hand(scores)):
        kept = selection.indices[sample].tolist()
        assert kept == sorted(set(kept))
        assert len(kept) == 6
        assert min(votes[index] for index in kept) >= max(
            count for index, count in enumerate(votes) if index not in kept
        )


def test_without_votes_the_best_score_decides_and_then_the_lower_index() -> None:
    scores = torch.full((1, 5, 5), 0.0)
    scores[0, :, 2] = 1.0  # every vote
    scores[0, 0, 4], scores[0, 1, 1] = 0.9, 0.5
    order = [select_tokens(scores, TokenPruning(keep_tokens=k)).indices[0].tolist() for k in (1, 2, 3, 4)]
    assert order == [[2], [2, 4], [1, 2, 4], [0, 1, 2, 4]]


def test_equal_scores_vote_for_the_first() -> None:
    selection = select_tokens(torch.zeros(1, 6, 6), TokenPruning(keep_tokens=6, mode="union"))
    assert int(selection.kept) == 1
    assert int(selection.indices[0, 0]) == 0


def test_permuted_tokens_are_selected_likewise() -> None:
    images, prompt = tokens(30, batch=1)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    pruning = TokenPruning(keep_tokens=30, mode="union")
    one = select_tokens(importance_scores(images, prompt), pruning)
    other = select_tokens(importance_scores(images[:, order], prompt), pruning)
    kept = int(one.kept)
    assert sorted(order[other.indices[0, :kept]].tolist()) == one.indices[0, :kept].tolist()


def test_padded_prompt_tokens_have_no_say() -> None:
    images, prompt = tokens()
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    shorter = importance_scores(images, prompt[:, :3])
    torch.testing.assert_close(importance_scores(images, prompt, mask), shorter, rtol=0, atol=1e-5)


def test_training_copies_tokens_and_lets_gradients_through() -> None:
    images, prompt = tokens()
    images.requires_grad_()
    mask = torch.ones(2, 5, dtype=torch.bool)
    mixed, source = straight_through(images, prompt, mask, 1.0, torch.Generator().manual_seed(0))
    expected = torch.gather(images, 1, source[:, :, None].expand(-1, -1, 24))
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-5)
    mixed.square().sum().backward()
    assert images.grad is not None
    never_chosen = [index for index in range(12) if index not in source[0].tolist()]
    assert images.grad[0, never_chosen].abs().sum() > 0
    quiet = straight_through(images, prompt, mask, 0.0, torch.Generator())[1]
    assert torch.equal(quiet, importance_scores(images, prompt, mask).argmax(-1))


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("pruning", [{"keep_tokens": 999}, {"keep_ratio": 1.0}])
@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_keeping_all_tokens_gives_bitwise_the_unpruned_actions(
    family: Family, pruning: dict[str, float], positions: Positions
) -> None:
    config = tiny_config(family)
    inputs = model_inputs(padded_batch(config, [[True, True, False]], [9]))
    noise = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    actions = [
        create_backend("pytorch", config, random_weights(config), options).infer(inputs, noise)
        for options in (
            BackendOptions(4, "fp32", "cpu"),
            BackendOptions(4, "fp32", "cpu", pruning=TokenPruning(positions=positions, **pruning)),  # type: ignore[arg-type]
        )
    ]
    np.testing.assert_array_equal(actions[0].actions, actions[1].actions)
    assert actions[0].pruned is None
    assert actions[1].pruned is not None
    assert actions[1].pruned.kept == actions[1].pruned.before == 8


@pytest.mark.parametrize("kv_cache", [True, False])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("mode", ["fixed", "union"])
def test_the_backend_computes_what_the_network_does_with_fewer_tokens(
    mode: str, positions: Positions, kv_cache: bool
) -> None:
    config = tiny_config("pi05")
    weights = random_weights(config)
    pruning = TokenPruning(keep_tokens=5, mode=mode, positions=positions)  # type: ignore[arg-type]
    backend = create_backend(
        "pytorch", config, weights, BackendOptions(4, "fp32", "cpu", kv_cache, pruning=pruning)
    )
    model = Pi0.from_openpi_weights(config, weights)
    noise = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    for length in (9, 4, 12):
        inputs = model_inputs(padded_batch(config, [[True, True, False]], [length], seed=length))
        result = backend.infer(inputs, noise)
        expected = trace_model(model, inputs, noise, 4, pruning).x_t[-1]
        np.testing.assert_allclose(result.actions, expected, atol=1e-5)
        plain = trace_model(model, inputs, noise, 4).x_t[-1]
        assert abs(expected - plain).max() > 1e-3
        assert result.pruned is not None
        assert result.pruned.kept <= 5
        np.testing.assert_array_equal(backend.infer(inputs, noise).actions, result.actions)


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_masked_slots_change_nothing(positions: Positions) -> None:
    config = tiny_config("pi05")
    model = Pi0.from_openpi_weights(config, random_weights(config))
    images, prompt = tokens(24, 40, batch=1)
    wide, chosen = prune_prefix(
        images, prompt, TokenPruning(keep_tokens=24, mode="union", positions=positions)
    )
    voted = int(chosen.kept)
    assert voted < 24
    tight, _ = prune_prefix(
        images, prompt, TokenPruning(keep_tokens=voted, mode="union", positions=positions)
    )
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(1, 5, 6, generator=generator)
    velocities = []
    with torch.inference_mode():
        model.rope_cos, model.rope_sin = (table.repeat(2, 1) for table in (model.rope_cos, model.rope_sin))
        for prefix in (wide, tight):
            cache = model.compute_prefix_kv_cache(prefix)
            suffix = model.place_suffix(prefix.embeddings.shape[1], prefix.lengths, prefix.suffix_start)
            conditioning = model.as_conditioning(model.time_conditioning(torch.ones(1)))
            velocities.append(
                model.denoise_step_with_cache(x_t, conditioning, torch.zeros(1, 6), cache, suffix)
            )
    torch.testing.assert_close(*velocities, rtol=0, atol=1e-5)


def test_original_positions_are_places_in_the_unpruned_prefix() -> None:
    images, prompt = tokens(30, batch=1)
    prefix, selection = prune_prefix(images, prompt, TokenPruning(keep_tokens=7))
    assert prefix.positions is not None
    assert prefix.positions[0].tolist() == [*selection.indices[0].tolist(), 30, 31, 32, 33, 34]
    assert prefix.suffix_start is not None
    assert prefix.suffix_start.tolist() == [35]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "either keep_tokens or keep_ratio"),
        ({"keep_tokens": 3, "keep_ratio": 0.5}, "either keep_tokens or keep_ratio"),
        ({"keep_tokens": 0}, "keep_tokens must be an integer of at least 1, not 0"),
        ({"keep_tokens": 2.5}, r"keep_tokens must be an integer of at least 1, not 2\.5"),
        ({"keep_ratio": 0.0}, "keep_ratio must lie above 0"),
        ({"keep_ratio": 1.1}, "keep_ratio must lie above 0"),
        ({"keep_tokens": 3, "mode": "soft"}, "pruning mode must be 'fixed' or 'union'"),
        ({"keep_tokens": 3, "positions": "gaps"}, "positions must be 'original' or 'compact'"),
        ({"keep_tokens": 3, "scope": "camera"}, "unreadable token pruning"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TokenPruning.from_json(values)


def test_ratios_are_rounded_up() -> None:
    assert TokenPruning(keep_ratio=0.1).slots(256) == 26
    assert TokenPruning(keep_ratio=0.1).slots(768) == 77
    assert TokenPruning(keep_tokens=300).slots(256) == 256


def test_more_tokens_than_can_be_ranked_are_refused() -> None:
    scores = torch.empty(1, 16384, 16384, device="meta")
    with pytest.raises(ValueError, match="at most 16383 image tokens can be ranked, not 16384"):
        select_tokens(scores, TokenPruning(keep_tokens=4))
