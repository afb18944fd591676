"""One answer to the status page, from plain data to JSON; runs on a thread."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlad_server.status.board import STAGES, Look, Refusal, Sample
from vlad_server.status.frames import jpeg_url

SIGNIFICANT_DIGITS = 5


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the page shows at one moment.

    Attributes:
        now: time.monotonic().
        facts: JSON types: the daemon's state, its policy, its counters, its connections.
        samples: replies that the page has not seen yet, oldest first.
        skipped: how many more there were.
        last_number: of the latest reply.
        robot: the one that the page has chosen; None where it has chosen none.
        look: what that robot saw and got; None where it sent nothing yet.
    """

    now: float
    facts: Mapping[str, Any]
    samples: Sequence[Sample]
    skipped: int
    last_number: int
    refusals: Sequence[Refusal]
    robot: str | None
    look: Look | None


def render(snapshot: Snapshot) -> bytes:
    """The snapshot as JSON."""
    message = {
        **snapshot.facts,
        "samples": {
            "columns": ["age_s", "robot", *STAGES],
            "rows": [_row(sample, snapshot.now) for sample in snapshot.samples],
            "skipped": snapshot.skipped,
            "last": snapshot.last_number,
        },
        "refusals": [
            {"age_s": snapshot.now - one.at, "robot": one.robot, "code": one.code, "text": one.text}
            for one in snapshot.refusals
        ],
        "robot": snapshot.robot,
        "look": None if snapshot.look is None else _look(snapshot.look, snapshot.now),
    }
    return json.dumps(_plain(message), separators=(",", ":"), allow_nan=False).encode()


def _row(sample: Sample, now: float) -> list[Any]:
    return [now - sample.left, sample.robot, *sample.stages_ms]


def _look(look: Look, now: float) -> dict[str, Any]:
    return {
        "age_s": now - look.taken,
        "prompt": look.prompt,
        "frames": [
            {"camera": key, "url": jpeg_url(frame), "height": frame.shape[0], "width": frame.shape[1]}
            for key, frame in look.frames.items()
        ],
        "state": look.state,
        "actions": look.actions.tolist(),
    }


def _plain(value: Any) -> Any:
    """JSON types only: short numbers, nothing for what is not finite, text for what JSON does not know."""
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | bool | None) else str(value)
