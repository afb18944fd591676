"""Token pruning in the Triton backends on a GPU, at full width.

Needs 30 GB of it.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.capabilities import Batched
from vlad_engines.backends.registry import create_backend
from vlad_engines.bench.case import RequestShape, model_inputs, noise
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

BATCH = 2


def results(backend: str, pruning: TokenPruning | None) -> Sequence[InferenceResult]:
    """A request alone, then two together; the prompts differ in length."""
    checkpoint = open_policy_checkpoint("random:pi05", environment="LIBERO")
    model = checkpoint.contract.model
    options = BackendOptions(3, "bf16", "cuda", camera_counts=(2,), batch_sizes=(1, BATCH), pruning=pruning)
    made = create_backend(backend, model, open_weights(checkpoint, "cuda"), options)
    try:
        inputs = [model_inputs(model, RequestShape(2, length), length) for length in (20, 11)]
        starts = list(noise(model, BATCH))
        alone = made.infer(inputs[0], starts[0])
        repeated = made.infer(inputs[0], starts[0])
        np.testing.assert_array_equal(alone.actions, repeated.actions)
        assert isinstance(made, Batched)
        return [alone, *made.infer_batch(inputs, starts)]
    finally:
        made.close()
        del made
        gc.collect()
        torch.cuda.empty_cache()


@pytest.mark.parametrize("backend", ["triton", "triton_pipelined"])
def test_keeping_all_tokens_gives_the_unpruned_bits(backend: str) -> None:
    for plain, pruned in zip(
        results(backend, None), results(backend, TokenPruning(keep_ratio=1.0)), strict=True
    ):
        np.testing.assert_array_equal(plain.actions, pruned.actions)
        assert plain.pruned is None
        assert pruned.pruned is not None
        assert pruned.pruned.kept == pruned.pruned.before == 512


@pytest.mark.parametrize("backend", ["triton", "triton_pipelined"])
@pytest.mark.parametrize(
    "pruning", [TokenPruning(64), TokenPruning(24, positions="compact"), TokenPruning(64, mode="union")]
)
def test_each_request_tells_what_it_kept(backend: str, pruning: TokenPruning) -> None:
    for result in results(backend, pruning):
        assert result.pruned is not None
        assert np.isfinite(result.actions).all()
        voted = result.pruned.voted if pruning.mode == "union" else 512
        assert result.pruned.kept == min(pruning.slots(512), voted)
