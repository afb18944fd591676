"""Draws a checkup: what each camera saw first and last, how the state moved, what was found."""

from __future__ import annotations

import pathlib
import textwrap
from typing import Any

import numpy as np

from vlad_client.checkup import Checkup

SUFFIXES = (".png", ".svg")


def draw_checkup(checkup: Checkup, path: pathlib.Path) -> None:
    """Write a PNG or SVG.

    Raises:
        ValueError: for another suffix.
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"pictures are written as {' or '.join(SUFFIXES)}, not '{path.name}'")
    from matplotlib.figure import Figure

    columns = max(1, len(checkup.images))
    figure = Figure(figsize=(max(9.0, 3.2 * columns), 11), dpi=110, layout="constrained")
    grid = figure.add_gridspec(4, columns, height_ratios=[2, 2, 1.3, 1.1])
    for column, (key, notes) in enumerate(checkup.images.items()):
        for row, (name, image) in enumerate((("first", notes.first), ("last", notes.last))):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(_pixels(image))
            axis.set_title(f"{key}, {name}", fontsize=8)
            axis.set_axis_off()
    course = figure.add_subplot(grid[2, :])
    for values in checkup.vectors.values():
        course.plot(values, linewidth=1.0)
    course.set_title("state, every number", fontsize=8)
    course.set_xlabel("frame")
    course.grid(alpha=0.25)
    course.spines[["top", "right"]].set_visible(False)
    words = figure.add_subplot(grid[3, :])
    words.set_axis_off()
    words.text(0.0, 1.0, _findings(checkup), va="top", family="monospace", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _findings(checkup: Checkup) -> str:
    report = checkup.report()
    start = report.find("WARNING")
    lines = report[start:].splitlines() if start >= 0 else [report.splitlines()[-1]]
    return "\n".join(
        textwrap.fill(line.strip(), 110, initial_indent=_indent(line), subsequent_indent=_indent(line))
        for line in lines
    )


def _pixels(image: Any) -> Any:
    if image.shape[0] == 3:
        image = np.moveaxis(image, 0, -1)
    return np.clip(image, 0.0, 1.0) if image.dtype.kind == "f" else image


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()))
