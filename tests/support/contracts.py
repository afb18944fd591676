"""Contracts for tests of the processing alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests.support.checkpoints import small_model
from vlad_configs.contract import Contract
from vlad_configs.environments import Environment
from vlad_engines.processing.normalization import FeatureStats, NormStats


class CharacterTokenizer:
    """One token per character, begin-of-sequence 2; enough where token ids do not matter."""

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        return [2] * add_bos + [10 + ord(character) % 7 for character in text]


def contract_for(environment: Environment, **changes: Any) -> Contract:
    """An openpi pi0.5 contract without normalisation, state or deltas, changed as asked."""
    contract = Contract(
        layout="openpi",
        environment=environment,
        model=small_model(),
        num_denoising_steps=10,
        prompt_template="text",
        norm_kind={"state": "identity", "actions": "identity"},
        norm_formula="openpi",
        delta_mask=None,
        image_resize="pil_antialiased",
    )
    return dataclasses.replace(contract, **changes)


NO_STATS = NormStats(FeatureStats(), FeatureStats())


def spread_stats(width: int, seed: int = 0) -> FeatureStats:
    """Statistics of `width` numbers, all different."""
    random = np.random.default_rng(seed)
    mean, std = random.normal(size=width), random.uniform(0.5, 1.5, size=width)
    return FeatureStats(mean, std, mean - 2 * std, mean + 2 * std)
