"""What a worker says of its device's memory is the driver's word."""

from __future__ import annotations

import pytest
import torch

from vlad_engines.device_memory import device_memory
from vlad_engines.worker_protocol import DeviceMemory

MEGABYTE = 1 << 20


def test_a_cpu_has_none() -> None:
    assert device_memory("cpu") is None


class Watching:
    """A backend with a driver of its own."""

    def memory_bytes(self) -> tuple[int, int]:
        return 3 * MEGABYTE, 8 * MEGABYTE


@pytest.mark.parametrize(("device", "shown"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1")])
def test_a_backend_that_knows_is_asked_whatever_torch_sees(device: str, shown: str) -> None:
    memory = DeviceMemory(shown, used_bytes=5 * MEGABYTE, total_bytes=8 * MEGABYTE, reserved_bytes=0)
    assert device_memory(device, Watching()) == memory
    assert device_memory("cpu", Watching()) is None


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
    # Other processes may let go of some meanwhile.
    assert after.used_bytes - before.used_bytes >= 400 * MEGABYTE
    # Some of it may lie in what was reserved before.
    assert after.reserved_bytes >= held.nbytes
    assert after.reserved_bytes - before.reserved_bytes >= 400 * MEGABYTE
