"""Draws a comparison: where in chunk and run two policies differ, and their worst chunk side by side."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from vlad_configs.errors import ConfigError
from vlad_server.recordings.comparison import Comparison

SUFFIXES = (".png", ".svg")
FIRST = "#1f3b63"
SECOND = "#e0912f"
MAX_JOINTS = 8
"""Drawn of the worst chunk: those that differ most."""


def draw_comparison(comparison: Comparison, path: pathlib.Path) -> None:
    """Write a PNG or SVG.

    Above: differences per joint and step as a heat map in shares of the joint's span, and per request.
    Below: the chunk with the largest difference, joint by joint, both policies.

    Raises:
        ConfigError: for another suffix, and where matplotlib is missing.
        OSError: where the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"plots are written as {' or '.join(SUFFIXES)}, not '{path.name}'")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    width = comparison.first.actions.shape[2]
    order = np.abs(comparison.difference).max(axis=(0, 1)) / np.maximum(comparison.span, 1e-12)
    joints = sorted(np.argsort(order)[::-1][:MAX_JOINTS].tolist())
    rows = -(-len(joints) // 4)
    figure = Figure(figsize=(12, 3.6 + 1.9 * rows), dpi=120, layout="constrained")
    figure.suptitle(
        f"A {comparison.first.name}   B {comparison.second.name}   "
        f"{len(comparison.first.numbers)} requests, {width} joints",
        fontsize=11,
    )
    halves: Any = figure.subfigures(2, 1, height_ratios=[3.2, 1.9 * rows])
    above, below = halves
    heat, course = above.subplots(1, 2, width_ratios=[1, 1.4])
    _draw_heat(figure, heat, comparison)
    _draw_course(course, comparison)
    _draw_worst(below, comparison, joints, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_heat(figure: Any, axis: Any, comparison: Comparison) -> None:
    shares = 100 * comparison.per_step() / np.maximum(comparison.span, 1e-12)
    image = axis.imshow(shares.T, aspect="auto", cmap="magma_r", vmin=0.0, interpolation="nearest")
    axis.set_title("mean |B - A|, % of the joint's span in A", fontsize=9)
    axis.set_xlabel("step of the chunk")
    axis.set_ylabel("joint")
    axis.set_yticks(range(shares.shape[1]))
    figure.colorbar(image, ax=axis)


def _draw_course(axis: Any, comparison: Comparison) -> None:
    shares = 100 * np.abs(comparison.difference) / np.maximum(comparison.span, 1e-12)
    numbers = comparison.first.numbers
    axis.plot(numbers, shares.max(axis=(1, 2)), color=SECOND, linewidth=1.2, label="largest")
    axis.plot(numbers, shares.mean(axis=(1, 2)), color=FIRST, linewidth=1.2, label="mean")
    axis.set_title("|B - A| of each chunk, % of span", fontsize=9)
    axis.set_xlabel("request")
    axis.set_ylim(bottom=0.0)
    axis.legend(frameon=False, fontsize=8)
    _tidy(axis)


def _draw_worst(figure: Any, comparison: Comparison, joints: list[int], rows: int) -> None:
    number, _, _ = comparison.worst()
    (request,) = np.flatnonzero(comparison.first.numbers == number)
    columns = min(4, len(joints))
    axes = np.ravel(figure.subplots(rows, columns, sharex=True, squeeze=False))
    for axis, joint in zip(axes, joints, strict=False):
        axis.plot(comparison.first.actions[request, :, joint], color=FIRST, linewidth=1.6, label="A")
        axis.plot(
            comparison.second.actions[request, :, joint],
            color=SECOND,
            linewidth=1.2,
            linestyle="--",
            label="B",
        )
        axis.set_title(f"joint {joint}", fontsize=8)
        axis.tick_params(labelsize=7)
        _tidy(axis)
    for axis in axes[len(joints) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"the chunk that differs most: request {number}", fontsize=9)


def _tidy(axis: Any) -> None:
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
