"""Starts a command with the arguments that an environment variable holds, and becomes it.

    entrypoint.py SERVER_ARGS serve_policy --host 0.0.0.0

The variable is split as a shell splits words, quotes included; nothing in it is ever executed.
"""

from __future__ import annotations

import os
import shlex
import sys


def main() -> None:
    """Replace this process, so that the command gets the container's signals itself."""
    variable, *command = sys.argv[1:]
    try:
        words = shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        sys.exit(f"{variable} cannot be split into arguments: {error}")
    os.execvp(command[0], [*command, *words])


if __name__ == "__main__":
    main()
