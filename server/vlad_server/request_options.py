"""The optional keys of a request: what each may hold, and what it means. Pure, no clock."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ObservationError
from vlad_configs.rtc import RequestedMode

POLICY_KEYS = frozenset(["vlad/seed", "vlad/noise"])
"""Go to the policy as they are."""

OPTION_KEYS = frozenset(
    [
        *("vlad/observation_id", "vlad/session", "vlad/reset", "vlad/deadline_ms"),
        *("vlad/remaining", "vlad/control_hz", "vlad/rtc", "vlad/stream", "vlad/doctor"),
    ]
)
"""Concern the daemon. A request with one of them gets a reply with more keys."""

MAX_ID_CHARACTERS = 128
MAX_DEADLINE_MS = 3_600_000.0

RTC_KEYS = frozenset(
    [
        *("prev_chunk_id", "executed", "delay", "prefix_end"),
        *("mode", "beta", "schedule", "action_prefix"),
    ]
)

ObservationId = int | str


@dataclasses.dataclass(frozen=True)
class Continuation:
    """The key `vlad/rtc`: which chunk the robot executes, and how the new one shall continue it.

    Attributes:
        prev_chunk_id: id of the chunk that the robot executes.
        executed: index in it of the next action that the robot executes.
        action_prefix: instead of both, the actions left, `[k, action_width]` in the robot's units.
        delay: control steps until the new chunk can be used; None to let the server estimate it.
        prefix_end, mode, beta, schedule: as in `ChunkContinuation`, which checks them.
    """

    prev_chunk_id: int | None
    executed: int
    action_prefix: npt.NDArray[np.floating[Any]] | None
    delay: int | None
    prefix_end: int | None
    mode: RequestedMode
    beta: float | None
    schedule: Any


@dataclasses.dataclass(frozen=True)
class RequestOptions:
    """The options of one request.

    Attributes:
        observation_id: the client's name for the observation; None where it gave none.
        session: the robot's id; None for the connection itself.
        reset: True for the first observation of an episode.
        deadline_s: seconds from receipt after which the result is useless.
        slack_s: seconds until the robot runs out of actions.
        control_hz: actions per second that the robot executes.
        rtc: how to continue the robot's chunk; None for a chunk that stands alone.
        stream: True where a newer observation may take the place of this one.
        doctor: True where the reply shall say what is probably wrong with the observation.
        extended: True where the reply has the additional keys.
    """

    observation_id: ObservationId | None = None
    session: str | None = None
    reset: bool = False
    deadline_s: float | None = None
    slack_s: float | None = None
    control_hz: float | None = None
    rtc: Continuation | None = None
    stream: bool = False
    doctor: bool = False
    extended: bool = False


_PLAIN = RequestOptions()


def read_options(request: Mapping[str, Any]) -> RequestOptions:
    """Read the options of a decoded request.

    Raises:
        ObservationError: for a value that does not fit its key.
    """
    given = OPTION_KEYS & request.keys()
    if not given:
        return _PLAIN
    control_hz = _number(request, "vlad/control_hz")
    remaining = _count(request, "vlad/remaining")
    if remaining is not None and control_hz is None:
        raise ObservationError("vlad/control_hz", "a number above 0 beside vlad/remaining", "nothing")
    deadline_ms = _number(request, "vlad/deadline_ms")
    if deadline_ms is not None and deadline_ms > MAX_DEADLINE_MS:
        raise ObservationError("vlad/deadline_ms", f"at most {MAX_DEADLINE_MS:.0f}", f"{deadline_ms:g}")
    return RequestOptions(
        observation_id=read_observation_id(request),
        session=_session(request.get("vlad/session")),
        reset=_flag(request, "vlad/reset"),
        deadline_s=None if deadline_ms is None else 1e-3 * deadline_ms,
        slack_s=None if remaining is None or control_hz is None else remaining / control_hz,
        control_hz=control_hz,
        rtc=_continuation(request.get("vlad/rtc"), control_hz),
        stream=_flag(request, "vlad/stream"),
        doctor=_flag(request, "vlad/doctor"),
        extended=True,
    )


def read_observation_id(request: Mapping[str, Any]) -> ObservationId | None:
    """The id of an observation, which errors about its other keys name as well.

    Raises:
        ObservationError: for anything else than a count or a short text.
    """
    value = _plain(request.get("vlad/observation_id"))
    if value is None or (isinstance(value, str) and len(value) <= MAX_ID_CHARACTERS):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    expected = f"an integer of 0 or more, or a text of at most {MAX_ID_CHARACTERS} characters"
    raise ObservationError("vlad/observation_id", expected, _short(value))


def _session(value: Any) -> str | None:
    value = _plain(value)
    if value is None or (isinstance(value, str) and 1 <= len(value) <= MAX_ID_CHARACTERS):
        return value
    raise ObservationError("vlad/session", f"a text of 1 to {MAX_ID_CHARACTERS} characters", _short(value))


def _continuation(value: Any, control_hz: float | None) -> Continuation | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ObservationError("vlad/rtc", "a map", _short(value))
    if unknown := sorted(map(str, value.keys() - RTC_KEYS)):
        raise ObservationError(f"vlad/rtc/{unknown[0]:.64}", f"one of {', '.join(sorted(RTC_KEYS))}", "it")
    request = {f"vlad/rtc/{key}": _plain(item) for key, item in value.items()}
    prefix = value.get("action_prefix")
    chunk_id = _count(request, "vlad/rtc/prev_chunk_id")
    executed = _count(request, "vlad/rtc/executed")
    delay = _count(request, "vlad/rtc/delay")
    if (chunk_id is None) == (prefix is None):
        received = "neither" if prefix is None else "both"
        raise ObservationError("vlad/rtc", "either prev_chunk_id or action_prefix", received)
    if (chunk_id is None) != (executed is None):
        raise ObservationError(
            "vlad/rtc/executed", "an integer of 0 or more beside prev_chunk_id only", "else"
        )
    if delay is None and (prefix is not None or control_hz is None):
        expected = (
            "an integer of 0 or more (only beside prev_chunk_id and vlad/control_hz it can be estimated)"
        )
        raise ObservationError("vlad/rtc/delay", expected, "nothing")
    return Continuation(
        prev_chunk_id=chunk_id,
        executed=executed or 0,
        action_prefix=_prefix(prefix),
        delay=delay,
        prefix_end=_count(request, "vlad/rtc/prefix_end"),
        mode="auto" if request.get("vlad/rtc/mode") is None else request["vlad/rtc/mode"],
        beta=_number(request, "vlad/rtc/beta"),
        schedule=request.get("vlad/rtc/schedule"),
    )


def _prefix(value: Any) -> npt.NDArray[np.floating[Any]] | None:
    if value is None:
        return None
    if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim == 2:
        return value
    received = (
        f"{value.dtype} of shape {list(value.shape)}" if isinstance(value, np.ndarray) else _short(value)
    )
    raise ObservationError("vlad/rtc/action_prefix", "a float array [k, action width]", received)


def _count(request: Mapping[str, Any], key: str) -> int | None:
    value = _plain(request.get(key))
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31:
        return value
    raise ObservationError(key, "an integer of 0 or more", _short(value))


def _number(request: Mapping[str, Any], key: str) -> float | None:
    value = _plain(request.get(key))
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and value > 0:
        return float(value)
    raise ObservationError(key, "a finite number above 0", _short(value))


def _flag(request: Mapping[str, Any], key: str) -> bool:
    value = _plain(request.get(key, False))
    if isinstance(value, bool):
        return value
    raise ObservationError(key, "true or false", _short(value))


def _plain(value: Any) -> Any:
    """A numpy scalar, or an array with a single element and no axes, as Python's own type."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def _short(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.64}"
