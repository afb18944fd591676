"""Values on the command line."""

from __future__ import annotations

import argparse


def index_list(text: str) -> tuple[int, ...]:
    """Indices such as `0,2,5-7`, ascending.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    indices: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise argparse.ArgumentTypeError(f"expected indices such as 0,2,5-7, not '{text}'")
        indices.update(range(int(first), int(last if dash else first) + 1))
    return tuple(sorted(indices))
