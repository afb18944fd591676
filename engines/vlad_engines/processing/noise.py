"""Where a flow starts: given, seeded, or drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ObservationError
from vlad_configs.noise import seeded_noise

Array = npt.NDArray[np.float32]


class NoiseSource:
    """Starting noise of one shape, `[H, action_dim]` float32."""

    def __init__(self, horizon: int, action_dim: int) -> None:
        self._shape = (horizon, action_dim)
        self._random = np.random.Generator(np.random.PCG64())

    def draw(self, noise: npt.ArrayLike | None, seed: int | None) -> Array:
        """The noise of one request; without noise or seed, another one every time.

        Args:
            noise: `[H, action_dim]` or `[1, H, action_dim]`, any float type.
            seed: an integer of 0 or more.

        Raises:
            ObservationError: for noise or a seed that does not fit, or both of them.
        """
        if noise is not None:
            if seed is not None:
                raise ObservationError("vlad/seed", "either a seed or noise", "both")
            return _given_noise(noise, self._shape)
        if seed is not None:
            return seeded_noise(_seed(seed), self._shape)
        return self._random.standard_normal(self._shape, dtype=np.float32)


def _seed(seed: Any) -> int:
    number = seed.item() if isinstance(seed, np.ndarray | np.generic) and np.size(seed) == 1 else seed
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ObservationError("vlad/seed", "an integer of 0 or more", f"{type(seed).__name__} {seed!r:.64}")
    return number


def _given_noise(noise: npt.ArrayLike, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    expected = f"finite float32 of shape {list(shape)} or {[1, *shape]}"
    try:
        array = np.asarray(noise)
    except ValueError:
        raise ObservationError("vlad/noise", expected, "a ragged list") from None
    if array.dtype.kind != "f" or array.shape not in (shape, (1, *shape)):
        raise ObservationError("vlad/noise", expected, f"{array.dtype} of shape {list(array.shape)}")
    with np.errstate(over="ignore"):
        values = array.reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise ObservationError("vlad/noise", expected, "non-finite numbers")
    return values
