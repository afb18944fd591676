"""How much memory a device has left, by its driver and by torch."""

from __future__ import annotations

import torch

from vlad_engines.worker_protocol import DeviceMemory


def device_memory(device: torch.device) -> DeviceMemory | None:
    """The memory of `device` now; None for a CPU."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    return DeviceMemory(f"cuda:{index}", total - free, total, torch.cuda.memory_reserved(index))
