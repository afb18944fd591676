"""What a worker says of its device's memory is the driver's word."""

from __future__ import annotations

import pytest
import torch

from vlad_engines.device_memory import device_memory

MEGABYTE = 1 << 20


def test_a_cpu_has_none() -> None:
    assert device_memory("cpu") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_what_is_allocated_shows() -> None:
    before = device_memory("cuda")
    held = torch.empty(512 * MEGABYTE, dtype=torch.uint8, device="cuda")
    after = device_memory("cuda:0")
    assert before is not None
    assert after is not None
    assert before.device == after.device == "cuda:0"
    assert after.total_bytes == before.total_bytes > after.used_bytes
    assert after.used_bytes - before.used_bytes >= 500 * MEGABYTE
    assert after.reserved_bytes - before.reserved_bytes >= held.nbytes
