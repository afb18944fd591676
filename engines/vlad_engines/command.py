"""What the commands that prepare engines have in common."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from vlad_configs.errors import VladError

Args = TypeVar("Args")
Result = TypeVar("Result")


def run_command(prog: str, kind: type[Args], run: Callable[[Args], Result]) -> Result:
    """Parse the command line and run; what cannot work ends with one line and exit code 2."""
    args = tyro.cli(kind, prog=prog)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        return run(args)
    except VladError as error:
        print(f"{prog}: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def say_progress(stage: str, fraction: float) -> None:
    """Tell the terminal how far a stage is."""
    print(f"{100 * fraction:3.0f} %  {stage}", file=sys.stderr, flush=True)  # noqa: T201
