"""Draws a LIBERO action chunk beside the observation that it answers."""

from __future__ import annotations

import pathlib
import textwrap
from typing import Any

import numpy as np

PANELS = (
    ("translation\n(1 = 5 cm)", {"x": "#c0392b", "y": "#27864a", "z": "#2463a8"}),
    ("rotation\n(1 = 0.5 rad)", {"about x": "#c0392b", "about y": "#27864a", "about z": "#2463a8"}),
    ("gripper\n(-1 opens, +1 closes)", {"gripper": "#5b4a8a"}),
)
"""Columns of a LIBERO action in their order: end-effector deltas of one step, then the gripper."""

CONTROL_HZ = 20
MIN_RANGE = 0.1


def draw_chunk(
    chunk: np.ndarray[Any, Any], observation: dict[str, Any], title: str, path: pathlib.Path
) -> None:
    """Write a PNG with both camera images and instruction on the left, all 7 action columns on the right.

    Args:
        chunk: actions of shape [horizon, 7].
        observation: the request that was answered.

    Raises:
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.6))
    _draw_observation(left, observation)
    axes = right.subplots(len(PANELS), 1, sharex=True)
    steps = np.arange(len(chunk))
    column = 0
    for axis, (label, names) in zip(axes, PANELS):  # noqa: B905 - zip(strict=) needs Python 3.10
        for name, colour in names.items():
            axis.plot(steps, chunk[:, column], color=colour, marker="o", markersize=4, label=name)
            column += 1
        _style(axis, label)
    axes[-1].set_xlabel(f"step of the chunk ({1000 // CONTROL_HZ} ms each at {CONTROL_HZ} Hz)")
    axes[-1].set_xticks(steps[:: max(1, len(chunk) // 10)])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_observation(figure: Any, observation: dict[str, Any]) -> None:
    axes = figure.subplots(2, 1)
    images = {"agent view": "observation/image", "wrist camera": "observation/wrist_image"}
    for axis, (name, key) in zip(axes, images.items()):  # noqa: B905 - zip(strict=) needs Python 3.10
        axis.imshow(observation[key])
        axis.set_title(name, fontsize=10)
        axis.axis("off")
    prompt = "\n".join(textwrap.wrap(f"“{observation['prompt']}”", 38))
    figure.supxlabel(prompt, fontsize=10, style="italic")


def _style(axis: Any, label: str) -> None:
    low, high = axis.get_ylim()
    if high - low < MIN_RANGE:
        # Otherwise the last digits of a constant column fill the panel.
        middle = (low + high) / 2
        axis.set_ylim(middle - MIN_RANGE / 2, middle + MIN_RANGE / 2)
    axis.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axis.grid(alpha=0.3)
    axis.set_ylabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    if len(axis.get_lines()) > 2:
        axis.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
