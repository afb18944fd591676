"""Turns what a robot says about the chunk that it executes into what the engine needs to continue it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlad_configs.rtc import ChunkContinuation
from vlad_server.request_options import RequestOptions
from vlad_server.sessions import Session


def resolve(
    options: RequestOptions, session: Session, *, supported: bool
) -> tuple[dict[str, Any] | None, str | None]:
    """The fields of the `ChunkContinuation` for the worker, or None for a chunk that stands alone; and why.

    Args:
        session: whose chunks the request may name.
        supported: False where the policy cannot continue chunks.

    Raises:
        ObservationError: for values that a continuation cannot have.
    """
    rtc = options.rtc
    if rtc is None or rtc.mode == "off":
        return None, None
    if not supported:
        return None, "this policy cannot continue chunks"
    fields: dict[str, Any] = {
        "prefix_end": rtc.prefix_end,
        "mode": rtc.mode,
        "beta": rtc.beta,
        "schedule": rtc.schedule,
    }
    if rtc.prev_chunk_id is None:
        fields |= {"delay": rtc.delay, "action_prefix": rtc.action_prefix}
    else:
        chunk = session.chunk(rtc.prev_chunk_id)
        if chunk is None:
            return None, f"chunk {rtc.prev_chunk_id} is not kept (any more)"
        delay = rtc.delay
        if delay is None:
            assert options.control_hz is not None
            delay = session.expected_delay(options.control_hz)
        left = chunk.model_actions[rtc.executed :]
        fields |= {"delay": delay, "model_actions": left, "anchor_state": chunk.anchor_state}
    ChunkContinuation(**fields)
    return fields, None


def report(rtc: Mapping[str, Any] | None, options: RequestOptions, note: str | None) -> dict[str, Any] | None:
    """The reply's `rtc`: the engine's own words, or why there was nothing to continue."""
    if options.rtc is None:
        return None
    if rtc is not None:
        return dict(rtc)
    return {
        "mode": "off",
        "delay": options.rtc.delay,
        "prefix_end": None,
        "beta": None,
        "schedule": None,
        "valid_from": 0,
        "note": note,
    }
