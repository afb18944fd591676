"""Success per run, with intervals, as a picture."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any, Mapping, Sequence

from vlad_libero.errors import LiberoError


def plot_success(path: pathlib.Path, rows: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Draw labelled rows (anything with `success_rate` and `interval`) from top to bottom.

    Raises:
        LiberoError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LiberoError(f"the plot needs matplotlib ({error})") from error
    drawn = [(label, row) for label, row in rows if row["success_rate"] is not None]
    figure = Figure(figsize=(8, 0.9 + 0.36 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    for place, (_, row) in enumerate(drawn):
        rate, (low, high) = row["success_rate"], row["interval"]
        axes.errorbar(
            rate, place, xerr=[[max(0, rate - low)], [max(0, high - rate)]], fmt="o", color="C0", capsize=3
        )
    axes.set_yticks(range(len(drawn)), [label for label, _ in drawn])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("success, with 95 % Wilson intervals")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def distinct_parts(texts: Sequence[str]) -> list[str]:
    """The texts without the words that all of them begin and end with; a single text stays as it is."""
    if len(set(texts)) < 2:
        return list(texts)
    words = [text.split() for text in texts]
    start = _shared(words)
    rest = [parts[start:] for parts in words]
    end = _shared([parts[::-1] for parts in rest])
    return [" ".join(parts[: len(parts) - end]) for parts in rest]


def _shared(words: Sequence[Sequence[str]]) -> int:
    """How many words all lists begin with."""
    columns = zip(*words, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
