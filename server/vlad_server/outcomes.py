"""How a request ends: with a chunk, or with one of these errors, each of which has a code for clients.

VladError
├── ObservationError    invalid      the client's mistake
├── EngineError         engine       the engine failed on it
│   └── WorkerLostError worker_lost  the engine worker died over it
└── UnservedError
    ├── BusyError       busy         no room to wait
    ├── ExpiredError    expired      not to be had before its deadline
    ├── SupersededError superseded   a newer observation took its place
    ├── ResetError      reset        its episode is over
    └── LimitedError    limited      its client asks more often than it may
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import EngineError, ObservationError, VladError


class WorkerLostError(EngineError):
    """The engine worker died while it computed this request."""


class UnservedError(VladError):
    """A valid request that is not computed; the connection stays open."""

    code: ClassVar[str]


class BusyError(UnservedError):
    """There is no room for the request to wait."""

    code = "busy"


class ExpiredError(UnservedError):
    """The request cannot be computed before its deadline."""

    code = "expired"


class SupersededError(UnservedError):
    """A newer observation of the same session took its place."""

    code = "superseded"


class ResetError(UnservedError):
    """The episode that the observation belongs to is over."""

    code = "reset"


class LimitedError(UnservedError):
    """The client asks more often than it may."""

    code = "limited"


@dataclasses.dataclass(frozen=True)
class Reply:
    """A computed chunk.

    Attributes:
        actions: float64 `[action_horizon, action_width]`.
        policy_timing: milliseconds per stage, measured by the worker.
        started: time.perf_counter() at which computing began.
        infer_s: seconds that the worker's policy took, processing included.
        model_actions: float32 `[action_horizon, action_dim]` in the model's space; None where nobody asked.
        anchor_state: float64 `[state_width]`, the robot's state that belongs to them; likewise.
        rtc: how the chunk continues the one before; None where it does not.
        notes: what the policy noticed about the observation, for `notes_of_policy`; None for nothing.
    """

    actions: npt.NDArray[np.float64]
    policy_timing: Mapping[str, float]
    started: float
    infer_s: float
    model_actions: npt.NDArray[np.float32] | None = None
    anchor_state: npt.NDArray[np.float64] | None = None
    rtc: Mapping[str, Any] | None = None
    notes: Mapping[str, Any] | None = None


Outcome = Reply | Exception


def code_of(error: Exception) -> str:
    """The code under which clients and metrics know an error."""
    if isinstance(error, UnservedError):
        return error.code
    if isinstance(error, WorkerLostError):
        return "worker_lost"
    return "invalid" if isinstance(error, ObservationError | ValueError) else "engine"
