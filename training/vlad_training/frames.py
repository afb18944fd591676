"""Frames of a dataset as training samples, prepared by the very code that prepares requests when serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from vlad_configs.errors import ObservationError
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.processor import Processor
from vlad_training.batch import Batch, Sample, collate
from vlad_training.errors import DatasetError


class FrameSource(Protocol):
    """Frames of episodes; see `LeRobotDataset`."""

    actions: npt.NDArray[np.float32]
    states: npt.NDArray[np.float32]
    episode_ends: npt.NDArray[np.int64]

    def __len__(self) -> int: ...

    def observation(self, index: int) -> dict[str, Any]:
        """A frame as the robot would have sent it."""
        ...


class Frames:
    """A torch dataset: frame -> `Sample`; batches of frames -> `Batch`.

    Args:
        source: the frames.
        processor: of the contract that the trained policy will be served with.
        horizon, action_dim: of the network.
    """

    def __init__(self, source: FrameSource, processor: Processor, horizon: int, action_dim: int) -> None:
        self._source, self._processor = source, processor
        self._horizon, self._action_dim = horizon, action_dim

    def __len__(self) -> int:
        return len(self._source)

    @property
    def cameras(self) -> tuple[str, ...]:
        """Slots of the images of every sample."""
        return self._prepare(0).cameras

    def __getitem__(self, index: int) -> Sample:
        inputs = self._prepare(index)
        actions, inside = self._chunk(index, inputs)
        return Sample(
            images=torch.from_numpy(np.ascontiguousarray(inputs.images)),
            tokens=torch.from_numpy(inputs.tokens),
            token_count=torch.tensor(int(np.count_nonzero(inputs.token_mask))),
            state=torch.from_numpy(inputs.state.astype(np.float32)),
            actions=torch.from_numpy(actions),
            inside=torch.from_numpy(inside),
        )

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return collate([self[index] for index in indices])

    def _prepare(self, index: int) -> ModelInputs:
        try:
            inputs = self._processor.prepare(self._source.observation(index))
        except ObservationError as error:
            raise DatasetError(f"frame {index} cannot be served either: {error}") from error
        if inputs.images.dtype != np.uint8:
            raise DatasetError("training reads uint8 images; this contract resizes to float")
        return inputs

    def _chunk(
        self, index: int, inputs: ModelInputs
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Normalised actions `[H, A]` from a frame on, and which of them lie in its episode."""
        indices, inside = chunk_indices(self._source.episode_ends, index, self._horizon)
        normalised = self._processor.actions_to_model(self._source.actions[indices], inputs)
        padded = np.zeros((self._horizon, self._action_dim), np.float32)
        padded[:, : normalised.shape[1]] = normalised
        return padded, inside


def chunk_indices(
    episode_ends: npt.NDArray[np.int64], index: int, horizon: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Frames `[H]` of the chunk that begins at a frame; past the end of its episode the last one repeats."""
    wanted = np.arange(index, index + horizon)
    return np.minimum(wanted, episode_ends[index] - 1), wanted < episode_ends[index]
