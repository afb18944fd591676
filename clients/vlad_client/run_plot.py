"""The command `plot_run`: draws a recorded run, actions against time with the chunks they came from."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any, Sequence

import numpy as np

from vlad_client.run_record import KINDS, RunRecord

SUFFIXES = (".png", ".svg")
MAX_COLUMNS = 4

EXECUTED = "#1f3b63"
PLANNED = ("#e0912f", "#3f9b6e")
HOLD = "#c0392b"
DELAY = "#8a94a6"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 for a file that cannot be drawn."""
    args = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        record = RunRecord.load(args.record)
        draw_run(record, args.out, columns=args.columns, span_s=args.span, title=args.title)
    except ImportError:
        print("plot_run: needs matplotlib: pip install 'vlad-client[plot]'", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"plot_run: {error}", file=sys.stderr)
        return 1
    print(args.out)
    return 0


def draw_run(
    record: RunRecord,
    path: pathlib.Path,
    *,
    columns: Sequence[int] | None = None,
    span_s: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Write a PNG or SVG: one panel for each action column, and one for the delays.

    A thick line is what the robot executed, thin ones are the chunks as they came, from the row that was
    executed first back to the observation (dotted: dropped rows) and on to their end. A vertical line is
    the arrival of a chunk, the grey band before it the time from its observation on; red is where the
    robot held.

    Args:
        columns: of the action; None for the first 4.
        span_s: seconds to draw; None for all.
        title: above the panels; empty for a summary of the run.

    Raises:
        ValueError: for a run without a step, columns that it has not, and other suffixes.
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"plots are written as {' or '.join(SUFFIXES)}, not '{path.name}'")
    width = record.step_action.shape[1]
    chosen = list(range(min(width, MAX_COLUMNS))) if columns is None else list(columns)
    if not chosen:
        raise ValueError("the run has no action to draw")
    for column in chosen:
        if column not in range(width):
            raise ValueError(f"the actions have columns 0 to {width - 1}, not {column}")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.9 * len(chosen) + 2.6), dpi=120, layout="constrained")
    figure.suptitle(title or summary(record), fontsize=11)
    ratios = [1.0] * len(chosen) + [0.9]
    axes = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    for axis, column in zip(axes, chosen):  # noqa: B905 - zip(strict=) needs Python 3.10
        _draw_actions(axis, record, column)
    _draw_delays(axes[-1], record)
    first_s, last_s = (0.0, float(record.step_time[-1])) if span_s is None else span_s
    axes[-1].set_xlim(first_s, last_s)
    axes[-1].set_xlabel("time (s)")
    axes[0].legend(
        handles=_legend(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def summary(record: RunRecord) -> str:
    """One line about a run."""
    holds = int(np.count_nonzero(record.step_kind == KINDS.index("hold")))
    delays = record.chunk_index - record.chunk_anchor
    parts = [
        f"{np.count_nonzero(record.step_kind == KINDS.index('action'))} actions at {record.control_hz:g} Hz",
        f"{len(delays)} chunks",
        f"{holds} steps held",
    ]
    if len(delays):
        parts.append(f"delay {np.median(delays):g} steps (median), {delays.max()} (longest)")
    if np.isfinite(record.chunk_jump).any():
        parts.append(f"jump at a boundary {np.nanmean(record.chunk_jump):.3g} (mean L2)")
    return " · ".join(parts)


def _draw_actions(axis: Any, record: RunRecord, column: int) -> None:
    for number in range(len(record.chunk_anchor)):
        _draw_chunk(axis, record, number, column)
    for start_s, end_s in _holds(record):
        axis.axvspan(start_s, end_s, color=HOLD, alpha=0.18, linewidth=0)
    axis.step(
        record.step_time, record.step_action[:, column], where="post", color=EXECUTED, linewidth=1.6, zorder=3
    )
    axis.set_ylabel(f"action {column}")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_chunk(axis: Any, record: RunRecord, number: int, column: int) -> None:
    rows = record.chunk(number)[:, column]
    colour = PLANNED[number % len(PLANNED)]
    dropped = int(record.chunk_index[number] - record.chunk_anchor[number])
    arrived_s = record.chunk_arrived_at[number]
    # The next step after the arrival executes the first row that is not dropped.
    after = np.searchsorted(record.step_time, arrived_s)
    first_s = record.step_time[after] if after < len(record.step_time) else arrived_s
    # Each row lasts one control step, the last one too.
    rows = np.append(rows, rows[-1])
    time = first_s + (np.arange(len(rows)) - dropped) / record.control_hz
    style = {"color": colour, "linewidth": 0.9, "alpha": 0.8, "drawstyle": "steps-post"}
    axis.plot(time[dropped:], rows[dropped:], **style)
    axis.plot(time[: dropped + 1], rows[: dropped + 1], linestyle=":", **style)
    axis.axvline(arrived_s, color=colour, linewidth=0.7, alpha=0.7)
    axis.axvspan(record.chunk_requested_at[number], arrived_s, color=DELAY, alpha=0.15, linewidth=0)


def _draw_delays(axis: Any, record: RunRecord) -> None:
    arrived = record.chunk_arrived_at
    latency_ms = 1e3 * (arrived - record.chunk_requested_at)
    axis.bar(arrived, latency_ms, width=0.4 / record.control_hz, color=DELAY)
    axis.plot(arrived, latency_ms, linestyle="none", marker="o", markersize=3.5, color=EXECUTED)
    for number, delay in enumerate(record.chunk_index - record.chunk_anchor):
        axis.annotate(
            str(delay),
            (arrived[number], latency_ms[number]),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            clip_on=True,
            annotation_clip=True,
        )
    axis.set_ylabel("latency (ms),\nsteps of delay")
    axis.set_ylim(bottom=0, top=1.25 * max(latency_ms, default=1.0))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _holds(record: RunRecord) -> list[tuple[float, float]]:
    held = np.concatenate([[0], record.step_kind == KINDS.index("hold"), [0]]).astype(int)
    starts, ends = np.flatnonzero(np.diff(held) == 1), np.flatnonzero(np.diff(held) == -1)
    last = len(record.step_time) - 1
    return [
        (record.step_time[start], record.step_time[min(end, last)])
        for start, end in zip(starts, ends)  # noqa: B905 - zip(strict=) needs Python 3.10
    ]


def _legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Line2D([], [], color=EXECUTED, linewidth=1.6, label="executed"),
        Line2D([], [], color=PLANNED[0], linewidth=0.9, label="chunk as it came"),
        Line2D([], [], color=PLANNED[0], linewidth=0.9, linestyle=":", label="rows dropped"),
        Patch(color=DELAY, alpha=0.3, label="observation to arrival"),
        Patch(color=HOLD, alpha=0.3, label="held"),
    ]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="plot_run",
        description="Draw a recorded run: actions against time, chunk boundaries, delays.",
        allow_abbrev=False,
    )
    parser.add_argument("record", type=pathlib.Path, help="what RunRecord.save wrote")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("run.png"), help=".png or .svg")
    parser.add_argument("--columns", type=_columns, help="columns of the action, such as 0,1,6")
    parser.add_argument("--span", type=_span, help="seconds to draw, such as 2,5")
    parser.add_argument("--title", default="", help="above the panels; by default a summary")
    return parser.parse_args(arguments)


def _columns(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _span(text: str) -> tuple[float, float]:
    first, last = (float(part) for part in text.split(","))
    return first, last


if __name__ == "__main__":
    sys.exit(main())
