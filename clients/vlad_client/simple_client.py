"""The command `simple_client`: sends random observations to a policy server and shows the latencies."""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import sys
import time
from typing import Sequence

import numpy as np

from vlad_client.errors import PolicyClientError
from vlad_client.latency_table import LatencyTable, check_suffix
from vlad_client.observations import ENVIRONMENTS, random_observation
from vlad_client.progress import progress
from vlad_client.websocket_client_policy import WebsocketClientPolicy

API_KEY_VARIABLE = "VLAD_API_KEY"
WARM_UP_CALLS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 if a call failed, 2 for wrong arguments."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        table = _measure(args)
        print(table.render())
        if args.timing_file is not None:
            table.save(args.timing_file)
    except (PolicyClientError, OSError) as error:
        print(f"simple_client: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measure(args: argparse.Namespace) -> LatencyTable:
    random = np.random.default_rng()
    table = LatencyTable()
    api_key = args.api_key or os.environ.get(API_KEY_VARIABLE)
    with WebsocketClientPolicy(args.host, args.port, api_key) as policy:
        print(f"server metadata: {policy.get_server_metadata()}")
        for _ in range(WARM_UP_CALLS):
            policy.infer(random_observation(args.env, random))
        for _ in progress(range(args.num_steps), "running policy"):
            observation = random_observation(args.env, random)
            started = time.perf_counter()
            reply = policy.infer(observation)
            table.add(1e3 * (time.perf_counter() - started), reply)
    return table


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="simple_client",
        description="Send random observations to a policy server and show the latencies of its replies.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="0.0.0.0", help="name or address, also ws://NAME or wss://NAME")
    parser.add_argument("--port", type=int, default=8000, help="port of the server")
    parser.add_argument("--api-key", help=f"key that the server asks for; by default ${API_KEY_VARIABLE}")
    parser.add_argument("--num-steps", type=_positive, default=20, help="calls to time")
    parser.add_argument("--timing-file", type=_timing_file, help="write all timings to this .csv or .json")
    parser.add_argument("--env", choices=ENVIRONMENTS, default="ALOHA_SIM", help="whose observations to send")
    return parser.parse_args([_with_hyphens(argument) for argument in arguments])


def _with_hyphens(argument: str) -> str:
    """Let `--num_steps` mean `--num-steps`, as in openpi's commands."""
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value if flag.startswith("--") else argument


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be positive, not {number}")
    return number


def _timing_file(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    try:
        check_suffix(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


if __name__ == "__main__":
    sys.exit(main())
