"""Device memory that the graphs of all shapes share, because only one of them runs at a time."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Workspace:
    """Named buffers. Who asks for a name again gets the same memory in the shape then asked for.

    A buffer that is too small is replaced, and those who have it keep the old one; so ask for the largest
    shapes first. New memory is zero.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[str, Tensor] = {}
        self._graph_pool: Any = None

    @property
    def graph_pool(self) -> Any:
        """For `torch.cuda.graph`: where graphs keep what they need while they run and nobody needs after."""
        if self._graph_pool is None:
            self._graph_pool = torch.cuda.graph_pool_handle()
        return self._graph_pool

    def get(self, name: str, *shape: int, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor over the memory called `name`; its content is whatever was left there."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = torch.zeros(size, dtype=torch.uint8, device=self.device)
            self._buffers[name] = buffer
        return buffer[:size].view(dtype).view(shape)
