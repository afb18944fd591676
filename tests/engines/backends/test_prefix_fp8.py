"""Float8 weights: what they stand for everywhere, and a whole policy in fp8 on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlad_configs.errors import ConfigError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import create_backend
from vlad_engines.float8.scales import MOST

pytest.importorskip("triton", reason="triton is not installed: it comes with torch for CUDA, or alone")

on_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs an NVIDIA GPU with float8",
)


def test_a_quantised_matrix_multiplies_like_the_original() -> None:
    from vlad_engines.backends.triton.prefix_fp8 import Quantised

    generator = torch.Generator().manual_seed(0)
    # Rows of very different size, as a checkpoint has them: one scale for all would lose the small ones.
    weight = torch.randn(48, 64, generator=generator) * torch.logspace(-3, 2, 48)[:, None]
    x = torch.randn(16, 64, generator=generator)
    quantised = Quantised.of(weight.to(torch.bfloat16), float(x.abs().max()))
    rounded = (x * quantised.factor).clamp(-MOST, MOST).to(torch.float8_e4m3fn).float()
    product = rounded @ quantised.weight.float().T * quantised.columns
    expected = x @ weight.T
    error = (product - expected).norm(dim=0) / expected.norm(dim=0)
    assert float(error.mean()) < 0.05
    assert float(error.max()) < 0.1


def test_an_input_twice_as_large_as_in_calibration_still_fits() -> None:
    from vlad_engines.backends.triton.prefix_fp8 import Quantised

    quantised = Quantised.of(torch.ones(16, 16), 3.0)
    assert 2 * 3.0 * quantised.factor == pytest.approx(MOST)


def test_nothing_is_divided_by_a_matrix_of_zeros() -> None:
    from vlad_engines.backends.triton.prefix_fp8 import Quantised

    quantised = Quantised.of(torch.zeros(16, 16), 0.0)
    assert torch.equal(quantised.weight.float(), torch.zeros(16, 16))
    assert torch.isfinite(quantised.columns).all()
    assert np.isfinite(quantised.factor)


def test_fp8_without_observations_is_refused() -> None:
    with pytest.raises(ConfigError, match="calibration"):
        BackendOptions(10, "fp8", "cuda")


def test_a_backend_without_fp8_says_so() -> None:
    from vlad_engines.bench.case import RequestShape, model_inputs

    config = ModelConfig("pi05")
    options = BackendOptions(10, "fp8", "cpu", calibration=[model_inputs(config, RequestShape(1, 3), 0)])
    with pytest.raises(ConfigError, match="not fp8"):
        create_backend("pytorch", config, {}, options)


@pytest.mark.gpu
@on_gpu
def test_fp8_at_full_size_is_admitted() -> None:
    from vlad_engines.backends.choice import BackendChoice
    from vlad_engines.fidelity.verify import verify_checkpoint

    candidates = [BackendChoice("triton", precision) for precision in ("bf16", "fp8")]
    bf16, fp8 = verify_checkpoint("random:pi05", candidates, environment="LIBERO", device="cuda")
    assert fp8.passed, fp8.table()
    assert fp8.components["vision_tokens"].cosine == bf16.components["vision_tokens"].cosine
    assert fp8.components["prefix_keys"].cosine < bf16.components["prefix_keys"].cosine
    assert bf16.final.p99 < fp8.final.p99
