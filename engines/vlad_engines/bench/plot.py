"""Draws a results file: where the time of each row goes, against the floor."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from vlad_configs.errors import ConfigError
from vlad_engines.bench.results import Results
from vlad_engines.bench.row import STAGES, BenchRow

# Blue, orange and green that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = {"vision": "#0072B2", "prefix": "#E69F00", "denoise": "#009E73"}
_OTHER_COLOUR = "#BBBBBB"


def draw(results: Results, path: pathlib.Path) -> None:
    """Write a PNG: one bar per row, stages stacked, a mark at the floor.

    Modes that include more than the device also show the rest of the wall time, in grey.

    Raises:
        ConfigError: where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib; install it, or vlad with the extra 'dev'") from error
    rows = list(results.rows)
    figure = Figure(figsize=(9.0, 1.6 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(rows):
        left = 0.0
        for stage in STAGES:
            width = row.stages_ms[stage]
            axes.barh(place, width, left=left, height=0.62, color=_COLOURS[stage])
            left += width
        rest = row.wall_ms - left if row.mode != "engine" else 0.0
        if rest > 0:
            axes.barh(place, rest, left=left, height=0.62, color=_OTHER_COLOUR)
            left += rest
        if row.floor_ms is not None:
            axes.plot([row.floor_ms["total"]] * 2, [place - 0.42, place + 0.42], color="black", linewidth=2)
        axes.annotate(
            _figures(row), (left, place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [_title(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    # Room for the figures to the right of the longest bar.
    axes.set_xlim(0, 1.3 * max(_extent(row) for row in rows))
    axes.set_xlabel("milliseconds (median)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        handles=_legend(rows),
        fontsize=8,
        loc="lower left",
        ncols=5,
        frameon=False,
        bbox_to_anchor=(0.0, 1.0),
        borderaxespad=0.2,
    )
    figure.suptitle(f"{results.gpu}, {results.date}, commit {results.commit}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _legend(rows: Sequence[BenchRow]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=stage) for stage, colour in _COLOURS.items()]
    if any(row.mode != "engine" for row in rows):
        handles.append(Patch(color=_OTHER_COLOUR, label="rest of the wall time"))
    if any(row.floor_ms is not None for row in rows):
        handles.append(Line2D([], [], color="black", linewidth=2, label="floor"))
    return handles


def _title(row: BenchRow) -> str:
    kept = "" if row.pruning is None else f", K={row.pruning['keep_tokens']}"
    return (
        f"{row.model} {row.mode}, B={row.batch}{kept}\n{row.backend} {row.precision}, "
        f"{row.cameras} cam, {row.prompt_tokens} tok, chunk {row.chunk}"
    )


def _figures(row: BenchRow) -> str:
    total = row.gpu_ms["p50"] if row.mode == "engine" else row.wall_ms
    text = f"{total:.2f} ms, {row.requests_per_s:.0f}/s"
    if row.speedup is not None and row.speedup != 1.0:
        text += f", {row.speedup:.1f}x"
    return text


def _extent(row: BenchRow) -> float:
    return max(row.wall_ms, row.gpu_ms["p50"]) if row.mode != "engine" else sum(row.stages_ms.values())
