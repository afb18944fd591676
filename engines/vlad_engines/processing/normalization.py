"""Normalisation of states and un-normalisation of actions, in the two dialects that checkpoints use.

Statistics and results are float64. Nothing is ever clipped, as in openpi and LeRobot.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from vlad_configs.contract import NormFormula, NormKind
from vlad_configs.errors import CheckpointError

Array = npt.NDArray[np.float64]

_OPENPI_EPSILON = 1e-6
_LEROBOT_EPSILON = 1e-8

SMALL_SPAN = 1e-4
"""Spans below this blow noise up by four orders of magnitude; worth a warning."""


@dataclasses.dataclass(frozen=True)
class FeatureStats:
    """Statistics of one feature, each `[width]` float64 or absent."""

    mean: Array | None = None
    std: Array | None = None
    q01: Array | None = None
    q99: Array | None = None

    def __post_init__(self) -> None:
        shapes = {name: getattr(self, name).shape for name in self.present}
        if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise CheckpointError(f"statistics must be vectors of one width, got {shapes}")
        for name in self.present:
            if not np.isfinite(getattr(self, name)).all():
                raise CheckpointError(f"statistics '{name}' hold non-finite numbers")

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the statistics that exist."""
        return tuple(name for name in ("mean", "std", "q01", "q99") if getattr(self, name) is not None)

    @property
    def width(self) -> int:
        """How many numbers the feature has; 0 where no statistic exists."""
        return int(getattr(self, self.present[0]).shape[0]) if self.present else 0


@dataclasses.dataclass(frozen=True)
class NormStats:
    """Statistics of the two features that a policy normalises."""

    state: FeatureStats
    actions: FeatureStats


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """The affine map of one feature, `(x - offset) / divisor`, and its inverse.

    Attributes:
        offset, divisor, factor: `[width]` float64. The way in divides by `divisor`, the way back
            multiplies with `factor`; the two differ only for LeRobot's z-score.
        quantile: True where the result is stretched from [0, 1] to [-1, 1].
        pad_factor: factor of columns without statistics on the way back.
    """

    offset: Array
    divisor: Array
    factor: Array
    quantile: bool
    pad_factor: float = 1.0

    @classmethod
    def create(cls, kind: NormKind, formula: NormFormula, stats: FeatureStats) -> Normalizer | None:
        """Choose the map; None for `identity`.

        openpi adds 1e-6 to every divisor, in both directions. LeRobot adds 1e-8 to the standard
        deviation on the way in only, and to quantile spans only where they are exactly zero.

        Raises:
            CheckpointError: where a statistic is missing that the kind needs.
        """
        if kind == "identity":
            return None
        names = ("mean", "std") if kind == "zscore" else ("q01", "q99")
        missing = [name for name in names if name not in stats.present]
        if missing:
            raise CheckpointError(
                f"{kind} normalisation needs {' and '.join(names)}; missing: {', '.join(missing)} "
                f"(present: {', '.join(stats.present) or 'none'})"
            )
        if kind == "zscore":
            assert stats.mean is not None
            assert stats.std is not None
            if formula == "openpi":
                span = stats.std + _OPENPI_EPSILON
                # A missing column counts as mean 0 and std 1, to which openpi adds its epsilon too.
                return cls(stats.mean, span, span, False, 1.0 + _OPENPI_EPSILON)
            return cls(stats.mean, stats.std + _LEROBOT_EPSILON, stats.std, False)
        assert stats.q01 is not None
        assert stats.q99 is not None
        span = stats.q99 - stats.q01
        divisor = (
            span + _OPENPI_EPSILON if formula == "openpi" else np.where(span == 0, _LEROBOT_EPSILON, span)
        )
        return cls(stats.q01, divisor, divisor, True)

    def normalize(self, x: npt.ArrayLike) -> Array:
        """Normalise the last axis; statistics wider than `x` are cut to it.

        Raises:
            ValueError: where `x` is wider than the statistics.
        """
        values = np.asarray(x, dtype=np.float64)
        width = values.shape[-1]
        if width > len(self.offset):
            raise ValueError(f"{width} columns to normalise, statistics for {len(self.offset)}")
        scaled: Array = (values - self.offset[:width]) / self.divisor[:width]
        return scaled * 2.0 - 1.0 if self.quantile else scaled

    def unnormalize(self, x: npt.ArrayLike) -> Array:
        """Undo `normalize` on the last axis; columns past the statistics count as mean 0 and span 1.

        Raises:
            ValueError: where the statistics are wider than `x`.
        """
        values = np.asarray(x)
        width = len(self.offset)
        if values.shape[-1] < width:
            raise ValueError(f"statistics for {width} columns, {values.shape[-1]} to un-normalise")
        known = values[..., :width]
        if self.quantile:
            # In the precision of `x`: openpi halves float32 actions before its float64 statistics meet them.
            known = (known + 1.0) / 2.0
        padding = values[..., width:].astype(np.float64) * self.pad_factor
        return np.concatenate([known * self.factor + self.offset, padding], axis=-1)


def small_spans(kind: NormKind, stats: FeatureStats) -> list[int]:
    """Columns whose span is so small that normalising them magnifies noise."""
    if kind == "identity":
        return []
    span = stats.std if kind == "zscore" else None
    if kind == "quantile" and stats.q01 is not None and stats.q99 is not None:
        span = stats.q99 - stats.q01
    return [] if span is None else [int(index) for index in np.flatnonzero(np.abs(span) < SMALL_SPAN)]
