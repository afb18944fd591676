"""One process or many: what `torchrun` says about them, and the group that they form."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from vlad_configs.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """Mean of a scalar over all processes."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
            value /= self.world_size
        return value

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()


@contextlib.contextmanager
def processes(device: str | None, variables: Mapping[str, str] = os.environ) -> Iterator[Processes]:
    """Join the group that `torchrun` started, or be alone.

    Args:
        device: torch device; None for this process's GPU where there is one.

    Raises:
        ConfigError: for a device that is not there.
    """
    rank, world_size = int(variables.get("RANK", 0)), int(variables.get("WORLD_SIZE", 1))
    local = int(variables.get("LOCAL_RANK", 0))
    if device is None:
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    place = torch.device(device)
    if place.type == "cuda":
        if not torch.cuda.is_available() or (place.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device '{device}' is not there: torch sees {torch.cuda.device_count()} GPUs")
        if world_size > 1 and place.index != local:
            raise ConfigError("several processes choose their GPUs themselves; leave --device out")
        torch.cuda.set_device(place)
    if world_size == 1:
        yield Processes(0, 1, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world_size, place)
    finally:
        dist.destroy_process_group()
