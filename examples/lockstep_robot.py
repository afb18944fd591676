"""A robot that stops while it waits: the plain loop of openpi, at a control rate.

    serve_policy --env LIBERO --checkpoint demo
    python examples/lockstep_robot.py --host 127.0.0.1 --port 8000 --seconds 5

Plays part of each chunk, then waits for the next one. The arm is simulated. How long it stood still is
printed: streaming_robot.py does the same without standing still.
"""

from __future__ import annotations

import argparse
import sys
import time

from simulated_arm import CONTROL_HZ, SimulatedArm

from vlad_client import ActionChunkBroker, PolicyClientError, WebsocketClientPolicy


def main() -> int:
    """Run the example; returns its exit code."""
    args = _parse()
    arm = SimulatedArm()
    try:
        with WebsocketClientPolicy(
            args.host, args.port, image_encoding=args.image_encoding, request_timeout_s=30.0
        ) as policy:
            longest_s, stood_still_s = _play(arm, ActionChunkBroker(policy, args.execute_steps), args.seconds)
    except (PolicyClientError, ImportError) as error:
        print(f"lockstep_robot: {error}", file=sys.stderr)
        return 1
    print(
        f"{arm.executed} actions in {args.seconds:g} s; stood still for {1e3 * stood_still_s:.0f} ms, "
        f"longest step {1e3 * longest_s:.0f} ms of {1e3 / CONTROL_HZ:.0f} ms"
    )
    return 0


def _play(arm: SimulatedArm, broker: ActionChunkBroker, seconds: float) -> tuple[float, float]:
    """Execute actions for so long; returns the longest step and all time beyond the control period."""
    period_s = 1 / CONTROL_HZ
    longest_s = stood_still_s = 0.0
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        arm.apply(broker.infer(arm.observe())["actions"])
        took_s = time.monotonic() - began
        longest_s = max(longest_s, took_s)
        stood_still_s += max(0.0, took_s - period_s)
        time.sleep(max(0.0, period_s - took_s))
    return longest_s, stood_still_s


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a simulated LIBERO arm in lock-step.")
    parser.add_argument("--host", default="127.0.0.1", help="name or address of the server")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to run")
    parser.add_argument("--execute-steps", type=int, default=5, help="actions of each chunk")
    parser.add_argument("--image-encoding", choices=("jpeg", "png"), help="send images encoded")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
