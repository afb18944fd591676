"""How much memory a device has left, by its driver and by torch."""

from __future__ import annotations

import sys

from vlad_engines.backends.capabilities import WatchesMemory
from vlad_engines.worker_protocol import DeviceMemory


def device_memory(device: str, backend: object = None) -> DeviceMemory | None:
    """The memory of `cuda` or `cuda:N` now.

    Args:
        backend: of that device; asked first, where it is one that knows.

    Returns:
        None for a CPU, and where neither the backend nor a loaded torch can tell. What torch keeps is 0 where
        torch has not used the device.
    """
    torch = sys.modules.get("torch")
    if not device.startswith("cuda"):
        return None
    _, _, number = device.partition(":")
    if isinstance(backend, WatchesMemory):
        index = int(number) if number else 0
        free, total = backend.memory_bytes()
    elif torch is not None:
        index = int(number) if number else torch.cuda.current_device()
        free, total = torch.cuda.mem_get_info(index)
    else:
        return None
    reserved = 0
    if torch is not None and torch.cuda.is_initialized():
        reserved = torch.cuda.memory_reserved(index)
    return DeviceMemory(f"cuda:{index}", total - free, total, reserved)
