"""A policy on a device that is not the calling thread's current one: `--devices 0,1`, `--device cuda:1`."""

from __future__ import annotations

import pytest
import torch

from vlad_engines.backends.choice import BackendChoice
from vlad_engines.fidelity.verify import verify_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs"
    ),
]


@pytest.mark.parametrize("backend", ["pytorch", "triton", "triton_pipelined"])
def test_a_policy_on_the_second_device_computes_right_actions(backend: str) -> None:
    choice = BackendChoice(backend, "bf16")
    (report,) = verify_checkpoint("random:pi05", [choice], environment="LIBERO", device="cuda:1")
    assert torch.cuda.current_device() == 0
    assert report.passed, report.table()
