"""Which frames make up which batch, and who prepares them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Sampler

from vlad_training.batch import Batch
from vlad_training.frames import Frames
from vlad_training.prepared_frames import PreparedFrames


class StepSampler(Sampler[list[int]]):
    """Frames of each step, for one process.

    Every epoch is a new order of all frames; batches go on from one epoch to the next without a gap. The
    frames of a step follow from the seed and its number, so that a resumed run goes on as if uninterrupted.
    """

    def __init__(
        self,
        frames: int,
        batch_size: int,
        seed: int,
        steps: range,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._frames, self._batch_size, self._seed, self._steps = frames, batch_size, seed, steps
        self._rank, self._world_size = rank, world_size
        self._epoch: int | None = None
        self._order = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        size = self._batch_size // self._world_size
        for step in self._steps:
            first = step * self._batch_size + self._rank * size
            yield [self._frame(place) for place in range(first, first + size)]

    def _frame(self, place: int) -> int:
        epoch, index = divmod(place, self._frames)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, 1, epoch]).permutation(self._frames)
            self._epoch = epoch
        return int(self._order[index])


def batches(
    frames: Frames | PreparedFrames, sampler: StepSampler, workers: int, *, pinned: bool
) -> Iterator[Batch]:
    """The batch of each step of the sampler; prepared frames need no workers and no pinned memory."""
    if isinstance(frames, PreparedFrames):
        return (frames.batch(indices) for indices in sampler)
    loader: DataLoader[Batch] = DataLoader(
        frames,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def _unchanged(fetched: object) -> object:
    return fetched
