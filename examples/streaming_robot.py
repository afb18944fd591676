"""A robot that moves on while the next chunk is computed.

    serve_policy --env LIBERO --checkpoint demo
    python examples/streaming_robot.py --host 127.0.0.1 --port 8000 --seconds 5 --out out/streaming_robot

Runs a simulated arm with ChunkRunner, prints how it went, and writes the record of the run and its plot.
--plain asks for chunks that are not tied to each other; --camera-hz sends observations at that rate
instead of one at a time.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import sys

from simulated_arm import CONTROL_HZ, SimulatedArm

from vlad_client import (
    ChunkRunner,
    PolicyClientError,
    RealTimeConfig,
    RtcOptions,
    RunnerStatus,
    RunRecorder,
    StreamingClient,
)
from vlad_client.run_plot import draw_run, summary


def main() -> int:
    """Run the example; returns its exit code."""
    args = _parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    arm, recorder = SimulatedArm(), RunRecorder()
    try:
        config = RealTimeConfig(
            control_hz=args.control_hz,
            observation_hz=args.camera_hz,
            late=args.late,
            zero_columns=tuple(range(6)) if args.late == "hold_zero" else None,
            blend_steps=args.blend,
            rtc=None if args.plain else RtcOptions(),
        )
        with StreamingClient(
            args.host, args.port, os.environ.get("VLAD_API_KEY"), image_encoding=args.image_encoding
        ) as client:
            status = _play(client, arm, config, recorder, args)
    except (PolicyClientError, ImportError, ValueError) as error:
        print(f"streaming_robot: {error}", file=sys.stderr)
        return 1
    record = recorder.record(config.control_hz)
    record.save(args.out / "run.npz")
    print(summary(record))
    print(
        f"chunks: {'tied by the server' if status.real_time_chunking else 'plain'}; "
        f"{status.continued} of {status.chunks} continue the one before"
    )
    print(f"record: {args.out / 'run.npz'}")
    try:
        draw_run(record, args.out / "run.png")
    except ImportError:
        print("plot:   none, it needs matplotlib: pip install 'vlad-client[plot]'")
    else:
        print(f"plot:   {args.out / 'run.png'}")
    return 0


def _play(
    client: StreamingClient,
    arm: SimulatedArm,
    config: RealTimeConfig,
    recorder: RunRecorder,
    args: argparse.Namespace,
) -> RunnerStatus:
    with ChunkRunner(client, arm.observe, arm.apply, config, recorder=recorder) as runner:
        for _ in range(args.episodes):
            arm.reset()
            runner.start_episode()
            runner.wait(args.seconds)
            runner.end_episode()
        return runner.status()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a simulated LIBERO arm in real time.")
    parser.add_argument("--host", default="127.0.0.1", help="name or address of the server")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/streaming_robot"))
    parser.add_argument("--seconds", type=float, default=5.0, help="length of an episode")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--control-hz", type=float, default=CONTROL_HZ, help="actions a second")
    parser.add_argument("--camera-hz", type=float, help="send observations at this rate")
    parser.add_argument("--late", choices=("hold_last", "hold_zero", "slow_down"), default="hold_zero")
    parser.add_argument("--blend", type=int, default=0, help="steps over which plain chunks are faded in")
    parser.add_argument("--plain", action="store_true", help="ask for chunks that are not tied to each other")
    parser.add_argument("--image-encoding", choices=("jpeg", "png"), help="send images encoded")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
