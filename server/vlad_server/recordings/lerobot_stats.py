"""The statistics that a LeRobotDataset keeps of each feature, per episode and of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
PIXEL_STRIDE = 4
"""Pixels that image statistics leave out, per axis; their colours hardly differ from their neighbours'."""

Stats = dict[str, Any]


def vector_stats(values: npt.NDArray[Any]) -> Stats:
    """Of a feature `[frames, width]`: min, max, mean, std and quantiles as lists of `width`, and count."""
    values = np.asarray(values, np.float64)
    stats: Stats = {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "count": [len(values)],
    }
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return stats | {name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)}


class PixelCounts:
    """How often each of the 256 levels occurs per channel: all image statistics follow from it, exactly."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._frames = 0

    def add(self, image: npt.NDArray[np.uint8]) -> None:
        """Count an image `[H, W, 3]`."""
        pixels = image[::PIXEL_STRIDE, ::PIXEL_STRIDE].reshape(-1, 3)
        for channel in range(3):
            self._counts[channel] += np.bincount(pixels[:, channel], minlength=256)
        self._frames += 1

    @classmethod
    def merged(cls, parts: Sequence[PixelCounts]) -> PixelCounts:
        """The counts of all of them together."""
        whole = cls()
        for part in parts:
            whole._counts += part._counts
            whole._frames += part._frames
        return whole

    def stats(self) -> Stats:
        """As `vector_stats`, for pixels in 0..1 and with shape (3, 1, 1)."""
        levels = np.arange(256) / 255
        share = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = share @ levels
        std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0))
        present = self._counts > 0
        cumulated = share.cumsum(axis=1)
        rows: dict[str, Any] = {
            "min": levels[present.argmax(axis=1)],
            "max": levels[255 - present[:, ::-1].argmax(axis=1)],
            "mean": mean,
            "std": std,
        }
        for name, quantile in QUANTILES.items():
            rows[name] = levels[(cumulated >= quantile - 1e-12).argmax(axis=1)]
        return {name: row.reshape(3, 1, 1).tolist() for name, row in rows.items()} | {"count": [self._frames]}
