"""The command `check_robot`: sends live observations of a robot to a server and reports what looks wrong.

No action is executed.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import pathlib
import sys
from typing import Any, Callable, Mapping, Sequence

from vlad_client.checkup import Checkup, check_observations
from vlad_client.checkup_picture import SUFFIXES, draw_checkup
from vlad_client.errors import PolicyClientError
from vlad_client.websocket_client_policy import WebsocketClientPolicy

API_KEY_VARIABLE = "VLAD_API_KEY"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 where nothing looks wrong, 1 where something does, 2 where it could not be checked.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        observe = _function(args.observe)
        api_key = args.api_key or os.environ.get(API_KEY_VARIABLE)
        with WebsocketClientPolicy(args.host, args.port, api_key) as policy:
            checkup = check_observations(
                observe, policy.infer, policy.get_server_metadata(), frames=args.frames
            )
        print(checkup.report())
        if args.out is not None:
            _draw(checkup, args.out)
    except (PolicyClientError, OSError, ValueError) as error:
        print(f"check_robot: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 1 if checkup.warnings else 0


def _draw(checkup: Checkup, path: pathlib.Path) -> None:
    try:
        draw_checkup(checkup, path)
    except ImportError:
        print("check_robot: no picture without matplotlib: pip install 'vlad-client[plot]'", file=sys.stderr)
    else:
        print(f"\n{path}")


def _function(place: str) -> Callable[[], Mapping[str, Any]]:
    """The function that `module:function` names, with the working directory to import from.

    Raises:
        ValueError: where there is none.
    """
    module_name, colon, name = place.partition(":")
    if not (module_name and colon and name):
        raise ValueError(f"--observe must be MODULE:FUNCTION, not '{place}'")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--observe {place}: {error}") from error
    if not callable(function):
        raise ValueError(f"--observe {place}: that is no function")
    found: Callable[[], Mapping[str, Any]] = function
    return found


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="check_robot",
        description="Send live observations of a robot to a policy server and report what looks wrong. "
        "No action is executed. Exit code 1 where something does.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--observe",
        required=True,
        help="MODULE:FUNCTION of your robot's program that returns one observation, the map that it sends",
    )
    parser.add_argument("--host", default="127.0.0.1", help="name or address, also ws://NAME or wss://NAME")
    parser.add_argument("--port", type=int, default=8000, help="port of the server")
    parser.add_argument("--api-key", help=f"key that the server asks for; by default ${API_KEY_VARIABLE}")
    parser.add_argument("--frames", type=_positive, default=50, help="observations to send")
    parser.add_argument("--out", type=_picture, help="also draw first and last pictures to this .png or .svg")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {number}")
    return number


def _picture(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"pictures are written as {' or '.join(SUFFIXES)}")
    return path


if __name__ == "__main__":
    sys.exit(main())
