"""Distances between what a backend computed and what the reference computed.

All sums run in float64. A non-finite value makes every cosine NaN and every error infinite, which no
threshold admits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import EngineError
from vlad_configs.fidelity import ACTION_SCALE_FLOOR

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Similarity:
    """How alike two sets of arrays are.

    Attributes:
        cosine: the least one; rows are compared one by one.
        worst_row: index of the row with the least cosine: a layer, or a step.
        max_abs: largest absolute difference of any two numbers.
    """

    cosine: float
    worst_row: int
    max_abs: float


@dataclasses.dataclass(frozen=True)
class ActionErrors:
    """How far action chunks `[observations, H, A]` are from the reference.

    The normalised action error of one number is |a - a_ref| divided by the standard deviation that its
    column has in the final reference actions over all observations and the whole horizon, or by
    `ACTION_SCALE_FLOOR` where that is larger.

    Attributes:
        cosine: least cosine of a chunk.
        max_abs: largest |a - a_ref|, in normalised action units.
        p50, p99, max: quantiles of the normalised action error over all numbers.
    """

    cosine: float
    max_abs: float
    p50: float
    p99: float
    max: float


def cosine(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> float:
    """Cosine of the angle between two arrays taken as vectors; 1 where both are zero, NaN if not finite."""
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    if not np.isfinite(norms):
        return float("nan")
    if norms == 0.0:
        return 1.0 if x.any() == y.any() else 0.0
    return float(np.clip(x @ y / norms, -1.0, 1.0))


def similarity(candidates: list[Array], references: list[Array]) -> Similarity:
    """Compare arrays row by row along their first axis.

    Args:
        candidates, references: one array per observation; shapes agree pairwise.
    """
    worst, worst_row, max_abs = np.inf, 0, 0.0
    for candidate, reference in zip(candidates, references, strict=True):
        _require_same_shape(candidate, reference)
        cosines = [cosine(a, b) for a, b in zip(candidate, reference, strict=True)]
        row = int(np.argmin(cosines))  # a NaN counts as the least
        if not cosines[row] >= worst:
            worst, worst_row = cosines[row], row
        max_abs = max(max_abs, _largest(np.abs(candidate.astype(np.float64) - reference)))
        if np.isnan(worst):
            return Similarity(float("nan"), worst_row, float("inf"))
    return Similarity(float(worst), worst_row, max_abs)


def action_scale(reference_actions: Array) -> npt.NDArray[np.float64]:
    """What the error of each column is divided by: `[A]`, from the final reference `[observations, H, A]`."""
    columns = reference_actions.reshape(-1, reference_actions.shape[-1]).astype(np.float64)
    scale: npt.NDArray[np.float64] = np.maximum(columns.std(axis=0), ACTION_SCALE_FLOOR)
    return scale


def action_errors(candidate: Array, reference: Array, scale: npt.NDArray[np.float64]) -> ActionErrors:
    """Compare chunks `[observations, H, A]`.

    Args:
        scale: from `action_scale`.
    """
    _require_same_shape(candidate, reference)
    cosines = [cosine(a, b) for a, b in zip(candidate, reference, strict=True)]
    difference = np.abs(candidate.astype(np.float64) - reference)
    if not np.isfinite(difference).all():
        infinite = float("inf")
        return ActionErrors(float("nan"), infinite, infinite, infinite, infinite)
    error = difference / scale
    p50, p99 = np.percentile(error, [50, 99])
    return ActionErrors(
        float(np.min(cosines)), float(difference.max()), float(p50), float(p99), float(error.max())
    )


def _largest(difference: npt.NDArray[np.float64]) -> float:
    largest = float(difference.max(initial=0.0))
    return largest if np.isfinite(largest) else float("inf")


def _require_same_shape(candidate: Array, reference: Array) -> None:
    if candidate.shape != reference.shape:
        raise EngineError(f"the backend gave {candidate.shape}, the reference {reference.shape}")
