"""How much memory a device has left, by its driver and by torch."""

from __future__ import annotations

import sys

from vlad_engines.worker_protocol import DeviceMemory


def device_memory(device: str) -> DeviceMemory | None:
    """The memory of `cuda` or `cuda:N` now; None for a CPU, and in a process that does without torch."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    _, _, number = device.partition(":")
    index = int(number) if number else torch.cuda.current_device()
    free, total = torch.cuda.mem_get_info(index)
    return DeviceMemory(f"cuda:{index}", total - free, total, torch.cuda.memory_reserved(index))
