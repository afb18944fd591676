"""A whole dataset prepared once, as one tensor per field, in main memory or on the GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy.typing as npt
import torch
import tqdm
from torch.utils.data import DataLoader, Sampler

from vlad_training.batch import Batch
from vlad_training.errors import TrainingError
from vlad_training.frames import Frames

# What a worker hands over at once. As numpy arrays it goes through a pipe: tensors would lie in shared
# memory, of which containers often have 64 MiB only, and cost the reader a file handle each.
_PART = 16


class PreparedFrames:
    """Frames to take batches from by indexing; nothing is decoded any more.

    Args:
        content: all frames as one batch, on the device that they shall stay on.
        cameras: slots of the images.
    """

    def __init__(self, content: Batch, cameras: tuple[str, ...]) -> None:
        self._content, self.cameras = content, cameras

    def __len__(self) -> int:
        return len(self._content.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The frames of these indices, on the device of the frames."""
        place = torch.tensor(indices)
        if self._content.images.is_cuda:
            # A copy from pageable memory would wait for everything that the GPU has yet to compute.
            place = place.pin_memory().to(self._content.images.device, non_blocking=True)
        return Batch(
            **{
                field.name: getattr(self._content, field.name).index_select(0, place)
                for field in dataclasses.fields(Batch)
            }
        )


def prepare_all(frames: Frames, workers: int, device: torch.device, *, quiet: bool) -> PreparedFrames:
    """Prepare every frame and put it on `device`: S * S * 3 bytes per image, little else.

    Args:
        workers: processes that decode; 0 decodes here.

    Raises:
        TrainingError: where the device has no room.
    """
    first = frames.__getitems__([0])
    try:
        content = Batch(
            **{
                field.name: torch.empty(
                    (len(frames), *getattr(first, field.name).shape[1:]),
                    dtype=getattr(first, field.name).dtype,
                    device=device,
                )
                for field in dataclasses.fields(Batch)
            }
        )
    except (MemoryError, RuntimeError) as error:
        size = len(frames) * sum(_bytes(getattr(first, field.name)) for field in dataclasses.fields(Batch))
        raise TrainingError(
            f"{len(frames)} prepared frames of {size / 2**30:.1f} GiB do not fit on {device} ({error}); "
            "choose another --cache"
        ) from error
    loader: DataLoader[dict[str, npt.NDArray[Any]]] = DataLoader(
        frames,  # type: ignore[arg-type]
        batch_sampler=_Parts(len(frames)),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        collate_fn=_as_arrays,  # type: ignore[arg-type]  # the frames collate themselves
    )
    done = 0
    with tqdm.tqdm(total=len(frames), desc="preparing frames", disable=quiet, unit="frame") as progress:
        for part in loader:
            count = len(part["images"])
            for name, values in part.items():
                getattr(content, name)[done : done + count] = torch.from_numpy(values)
            done += count
            progress.update(count)
    return PreparedFrames(content, frames.cameras)


class _Parts(Sampler[list[int]]):
    """All frames in order, in parts."""

    def __init__(self, frames: int) -> None:
        self._frames = frames

    def __len__(self) -> int:
        return -(-self._frames // _PART)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self._frames, _PART):
            yield list(range(start, min(start + _PART, self._frames)))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _as_arrays(batch: Batch) -> dict[str, npt.NDArray[Any]]:
    return {field.name: getattr(batch, field.name).numpy() for field in dataclasses.fields(Batch)}
