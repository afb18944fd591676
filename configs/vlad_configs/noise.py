"""The noise that a seed stands for: the same in the engine, in recordings and in replays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def seeded_noise(seed: int, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Standard normal float32 `[action_horizon, action_dim]`, always the same for a seed of 0 or more."""
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
