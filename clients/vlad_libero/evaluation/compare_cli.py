"""`compare_libero`: two runs of `eval_libero` on the same episodes."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from typing import Sequence

from vlad_libero.errors import LiberoError
from vlad_libero.evaluation.results import read_summary
from vlad_libero.evaluation.table import compare, comparison_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where the runs can be compared."""
    parser = argparse.ArgumentParser(prog="compare_libero", description=__doc__)
    parser.add_argument("first", type=pathlib.Path, help="summary.json, or the directory that holds it")
    parser.add_argument("second", type=pathlib.Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        comparison = compare(read_summary(options.first), read_summary(options.second))
    except LiberoError as error:
        print(f"compare_libero: {error}", file=sys.stderr)
        return 2
    print(json.dumps(comparison) if options.json else comparison_text(comparison))
    return 0


if __name__ == "__main__":
    sys.exit(main())
