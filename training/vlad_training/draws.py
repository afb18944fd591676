"""Everything that a training step draws, from the seed and the number of the step alone.

A step therefore draws the same numbers in one process or many, on a CPU or a GPU, and after a restart.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from vlad_configs.training import TrainConfig

_AHEAD = 3


@dataclasses.dataclass(frozen=True)
class Draws:
    """Random numbers of the samples of one process, on the CPU: K of `draws_per_sample` for each sample.

    Attributes:
        noise: `[B * K, H, A]` float32, standard normal; those of a sample lie together.
        time: `[B * K]` float32, Beta(1.5, 1) stretched to 0.001..1: 1 is noise, 0 is actions.
        given: `[B * K]` int64, how many first actions are given clean (training-time real-time chunking).
        image: `[B, C, 6]` float32 for `augmentation`: crop row and column in 0..1, rotation in -1..1, factors
            of brightness, contrast and saturation in -1..1. None without augmentation.
        pruning_seed: of the noise on the pruner's scores.
    """

    noise: Tensor
    time: Tensor
    given: Tensor
    image: Tensor | None
    pruning_seed: int

    def pin_memory(self) -> Draws:
        """The same in pinned memory, from where a copy to the GPU does not wait for what it computes."""
        return Draws(
            noise=self.noise.pin_memory(),
            time=self.time.pin_memory(),
            given=self.given.pin_memory(),
            image=None if self.image is None else self.image.pin_memory(),
            pruning_seed=self.pruning_seed,
        )

    def to(self, device: torch.device) -> Draws:
        """The same on a device."""
        return Draws(
            noise=self.noise.to(device, non_blocking=True),
            time=self.time.to(device, non_blocking=True),
            given=self.given.to(device, non_blocking=True),
            image=None if self.image is None else self.image.to(device, non_blocking=True),
            pruning_seed=self.pruning_seed,
        )


def draws_ahead(
    config: TrainConfig, steps: range, cameras: int, rank: int, world_size: int, *, pinned: bool
) -> Iterator[Draws]:
    """What each step draws, drawn by a thread some steps ahead: for a large batch it takes milliseconds."""

    def drawn(step: int) -> Draws:
        draws = draw(config, step, cameras, rank, world_size)
        return draws.pin_memory() if pinned else draws

    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="draws") as thread:
        coming = collections.deque(thread.submit(drawn, step) for step in steps[:_AHEAD])
        for index in range(len(steps)):
            draws = coming.popleft().result()
            if index + _AHEAD < len(steps):
                coming.append(thread.submit(drawn, steps[index + _AHEAD]))
            yield draws


def draw(config: TrainConfig, step: int, cameras: int, rank: int = 0, world_size: int = 1) -> Draws:
    """Draw for the whole batch of a step and keep the part of one process."""
    batch, each = config.batch_size, config.draws_per_sample
    random = np.random.default_rng([config.seed, step])
    horizon, width = config.model.action_horizon, config.model.action_dim
    noise = random.standard_normal((batch * each, horizon, width), dtype=np.float32)
    time = random.beta(1.5, 1.0, batch * each) * 0.999 + 0.001
    given = random.integers(0, config.rtc_max_delay + 1, batch * each)
    image = random.uniform(0, 1, (batch, cameras, 6))
    image[..., 2:] = image[..., 2:] * 2 - 1
    size = batch // world_size
    mine = slice(rank * size, (rank + 1) * size)
    drawn = slice(mine.start * each, mine.stop * each)
    return Draws(
        noise=torch.from_numpy(noise[drawn]),
        time=torch.from_numpy(time[drawn].astype(np.float32)),
        given=torch.from_numpy(given[drawn]),
        image=None if config.augmentation is None else torch.from_numpy(image[mine].astype(np.float32)),
        pruning_seed=int(random.integers(2**62)) + rank,
    )
