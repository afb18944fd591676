"""The command `export_lerobot`."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import pathlib
import sys
from typing import Annotated

import tyro

from vlad_configs.errors import ConfigError, VladError
from vlad_server.recordings.episodes import episodes, typical_rate
from vlad_server.recordings.reader import open_recording

logger = logging.getLogger("vlad.recordings")

UNEVEN = 1.5
"""Times longer than the median pause; beyond, the frames of the data set are not evenly spaced any more."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Make a LeRobotDataset v3.0 of recorded requests: one frame a request, the first action of its chunk.

    For fine-tuning on what a policy did; choose the recordings whose episodes went well.
    """

    paths: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Recordings of `serve_policy --record` (mcap), in order of time, and last the directory to be made."""
    fps: int | None = None
    """Frames per second; the typical rate of the requests where not given."""
    gap_seconds: float = 5.0
    """Silence after which a robot's next request begins another episode."""
    robot_type: str | None = None
    """For meta/info.json; the robot's name where not given."""


def run(args: Args) -> tuple[int, int]:
    """Export; returns how many episodes and frames.

    Raises:
        VladError: for files that cannot be read or do not belong together, and a directory that is in use.
        OSError: where the data set cannot be written.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("export_lerobot needs the package pyarrow: pip install 'vlad[record]'")
    from vlad_server.recordings.lerobot_dataset import LeRobotWriter

    if len(args.paths) < 2:
        raise ConfigError("name one or more recordings, and then the directory to be made")
    if args.gap_seconds <= 0 or (args.fps is not None and args.fps < 1):
        raise ConfigError("--gap-seconds must be above 0, and --fps at least 1")
    *files, directory = args.paths
    recordings = [open_recording(path) for path in files]
    robots = {recording.robot.name for recording in recordings}
    if len(robots) > 1:
        raise ConfigError(f"the recordings are of several robots: {', '.join(sorted(robots))}")
    fps = args.fps
    if fps is None:
        rate, unevenness = typical_rate(recordings, args.gap_seconds)
        fps = max(1, round(rate))
        if unevenness > UNEVEN:
            logger.warning(
                "requests came %.1f times a second, but unevenly (one pause in 20 is %.1f times as long or "
                "longer): the data set says evenly %d",
                rate,
                unevenness,
                fps,
            )
    writer = LeRobotWriter(directory, fps, args.robot_type or robots.pop().lower())
    count = frames = 0
    for episode in episodes(recordings, args.gap_seconds):
        writer.add(episode)
        count, frames = count + 1, frames + len(episode.frames)
    writer.finish()
    print(f"{directory}: {count} episodes, {frames} frames at {fps} fps")  # noqa: T201
    return count, frames


def main() -> None:
    """Entry point of `export_lerobot`."""
    args = tyro.cli(Args, prog="export_lerobot")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        run(args)
    except (VladError, OSError) as error:
        print(f"export_lerobot: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
