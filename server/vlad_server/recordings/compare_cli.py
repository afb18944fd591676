"""The command `compare_runs`."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import sys
from typing import Annotated

import tyro

from vlad_configs.errors import VladError
from vlad_server.recordings.comparison import Comparison, compare
from vlad_server.recordings.comparison_plot import draw_comparison
from vlad_server.recordings.run_file import load_run


@dataclasses.dataclass(frozen=True)
class Args:
    """Say how far the chunks of two runs are apart, per joint and per step.

    Each run is a recording of `serve_policy --record` (mcap) or the output of `replay_requests` (npz).
    Ends with exit code 1 where --tolerance is exceeded.
    """

    first: Annotated[pathlib.Path, tyro.conf.Positional]
    """The run that differences are counted from."""
    second: Annotated[pathlib.Path, tyro.conf.Positional]
    """The run that is held against it."""
    plot: pathlib.Path | None = None
    """Where to draw it: a .png or .svg file."""
    json: pathlib.Path | None = None
    """Where to write all figures as JSON."""
    tolerance: float | None = None
    """Largest difference allowed, as a share of what the joint moves through in the first run."""


def run(args: Args) -> Comparison:
    """Compare, print, and write what was asked for.

    Raises:
        VladError: for runs that cannot be compared.
        OSError: where a file cannot be written.
    """
    comparison = compare(load_run(args.first), load_run(args.second))
    print(comparison.table())  # noqa: T201
    if args.json is not None:
        args.json.write_text(json.dumps(comparison.to_json(), indent=1) + "\n", "utf-8")
    if args.plot is not None:
        draw_comparison(comparison, args.plot)
        print(args.plot)  # noqa: T201
    return comparison


def main() -> None:
    """Entry point of `compare_runs`."""
    args = tyro.cli(Args, prog="compare_runs")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        comparison = run(args)
    except (VladError, OSError) as error:
        print(f"compare_runs: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    largest = max(row["max_over_span"] for row in comparison.per_joint())
    sys.exit(1 if args.tolerance is not None and largest > args.tolerance else 0)


if __name__ == "__main__":
    main()
