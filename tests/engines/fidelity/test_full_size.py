"""Full-size networks on a GPU: eager bf16, from which the thresholds were derived, stays within them."""

from __future__ import annotations

import pytest
import torch

from vlad_engines.backends.choice import BackendChoice
from vlad_engines.fidelity.verify import verify_checkpoint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU with 24 GB")
@pytest.mark.parametrize("family", ["pi05", "pi0"])
def test_eager_bf16_passes_at_full_size(family: str) -> None:
    (report,) = verify_checkpoint(
        f"random:{family}", [BackendChoice("pytorch", "bf16")], environment="LIBERO", device="cuda"
    )
    assert report.passed, report.table()
    assert report.components["prefix_keys"].cosine > 0.9995
    assert report.final.p99 < 0.04
