"""Recordings for tests: exchanges made by hand, and files of them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from tests.support.libero import libero_observation
from vlad_server import wire
from vlad_server.recordings.exchange import RecordedExchange
from vlad_server.recordings.writer import RecordingWriter

FIRST_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
NOISE_SHAPE = (10, 32)


def exchange(number: int, **changes: Any) -> RecordedExchange:
    """The `number`-th exchange of a LIBERO robot that asks ten times a second.

    Args:
        changes: `observation`, `actions`, or fields of the exchange.
    """
    observation = changes.pop("observation", libero_observation(number))
    actions = changes.pop("actions", np.full((10, 7), float(number)))
    reply = {
        "actions": actions,
        "policy_timing": {"infer_ms": 20.0},
        "server_timing": {"infer_ms": 21.0, "total_ms": 22.0},
    }
    fields: dict[str, Any] = {
        "number": number,
        "received_ns": FIRST_NS + number * STEP_NS,
        "replied_ns": FIRST_NS + number * STEP_NS + 22_000_000,
        "connection": 0,
        "session": None,
        "request": wire.encode(observation),
        "reply": wire.encode(reply),
        "seed": number,
    }
    return RecordedExchange(**{**fields, **changes})


def write_recording(
    directory: pathlib.Path,
    exchanges: list[RecordedExchange],
    *,
    environment: str = "LIBERO",
    policy: dict[str, Any] | None = None,
    file_bytes: int = 1 << 30,
) -> list[pathlib.Path]:
    """Write exchanges as the daemon does; returns the files in their order."""
    directory.mkdir(parents=True, exist_ok=True)
    writer = RecordingWriter(directory, environment, file_bytes)
    writer.set_policy({"noise_shape": list(NOISE_SHAPE), "default_prompt": None, **(policy or {})})
    for one in exchanges:
        writer.write(one)
    writer.close()
    return sorted(directory.glob("*.mcap"), key=lambda path: path.stem.rpartition("-")[2])
