"""Whether a checkpoint was trained to continue chunks: the field is LeRobot's, in both layouts."""

from __future__ import annotations

from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.detect import CONFIG_FILE, CheckpointFiles

FIELD = "rtc_training_max_delay"


def trained_max_delay(files: CheckpointFiles, horizon: int) -> tuple[int | None, str]:
    """The longest delay of training-time real-time chunking, and where it came from.

    None where there was none; LeRobot writes that as 0.

    Args:
        horizon: actions of a chunk; a delay must leave some of them to predict.

    Raises:
        CheckpointError: for a value that is no delay.
    """
    if FIELD not in files.config:
        return None, f"{CONFIG_FILE} has no {FIELD}"
    delay = files.config[FIELD]
    if not isinstance(delay, int) or isinstance(delay, bool) or not 0 <= delay < horizon:
        raise CheckpointError(
            f"{files.path / CONFIG_FILE}: {FIELD} must be an integer in 0..{horizon - 1}, not {delay!r}"
        )
    return delay or None, f"{CONFIG_FILE}: {FIELD}"
