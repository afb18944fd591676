"""Real-time chunking: how a new chunk continues the one that its robot still executes.

A robot executes the old chunk while the new one is computed. The new chunk is therefore drawn towards what
is left of the old one: fully where the robot will act before the new chunk is there (`delay`), less and
less up to `prefix_end`, not at all behind it. Formulas: arXiv 2506.07339 (guidance) and 2512.05964
(training-time conditioning), in openpi's time, which runs from 1 (noise) to 0 (actions).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ObservationError

GuidanceMode = Literal["guided_identity", "guided_vjp", "trained"]
RequestedMode = Literal["auto", "guided_identity", "guided_vjp", "trained", "off"]
GuidanceSchedule = Literal["exp", "linear", "ones", "zeros"]

GUIDANCE_MODES: tuple[GuidanceMode, ...] = get_args(GuidanceMode)
"""`guided_identity` leaves the network's Jacobian out and costs two elementwise steps; `guided_vjp` is the
paper's exact form, with a backward pass; `trained` fixes the first actions, for checkpoints trained so."""

REQUESTED_MODES: tuple[RequestedMode, ...] = get_args(RequestedMode)
GUIDANCE_SCHEDULES: tuple[GuidanceSchedule, ...] = get_args(GuidanceSchedule)

DEFAULT_MODE: GuidanceMode = "guided_identity"
DEFAULT_SCHEDULE: GuidanceSchedule = "exp"


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkContinuation:
    """What is left of the chunk that the robot executes, and how the new one shall continue it.

    The leftover begins with the action that the robot executes next when it sends the observation. It
    comes in one of two forms, or in none (there is no previous chunk: the new one is sampled freely).
    k is its length, 0 where the old chunk is used up.

    Attributes:
        delay: control steps until the new chunk can be used, 0 or more.
        model_actions: `[k, action_dim]` float, as `UnifiedPolicy.infer` returned them.
        anchor_state: `[state_width]` float, beside `model_actions`: the robot's state in the observation
            that they were computed from, in the robot's own units, as `UnifiedPolicy.infer` returned it.
            Only policies whose actions are relative to the state need it.
        action_prefix: `[k, action_width]` float in the robot's units.
        prefix_end: index behind the last action that is drawn at all; None for all of the leftover but
            what the delay forbids. Cut to k.
        mode: `auto` takes `trained` where checkpoint and delay allow it, else `guided_identity`.
        beta: largest guidance factor, above 0; None for the number of denoising steps, the largest that
            cannot overshoot.
        schedule: how the weights fall between delay and prefix end; None for `exp`.

    Raises:
        ObservationError: for values that cannot be meant; its key is that of the request.
    """

    delay: int
    model_actions: npt.NDArray[np.floating[Any]] | None = None
    anchor_state: npt.NDArray[np.floating[Any]] | None = None
    action_prefix: npt.NDArray[np.floating[Any]] | None = None
    prefix_end: int | None = None
    mode: RequestedMode = "auto"
    beta: float | None = None
    schedule: GuidanceSchedule | None = None

    def __post_init__(self) -> None:
        _check_count("vlad/rtc/delay", self.delay)
        if self.prefix_end is not None:
            _check_count("vlad/rtc/prefix_end", self.prefix_end)
        _check_choice("vlad/rtc/mode", self.mode, REQUESTED_MODES)
        if self.schedule is not None:
            _check_choice("vlad/rtc/schedule", self.schedule, GUIDANCE_SCHEDULES)
        if self.beta is not None:
            _check_beta(self.beta)
        if self.model_actions is not None and self.action_prefix is not None:
            raise ObservationError(
                "vlad/rtc", "the previous chunk by its id or an action_prefix", "both of them"
            )
        if self.anchor_state is not None:
            _check_floats("vlad/rtc/anchor_state", self.anchor_state, 1)
        for name in ("model_actions", "action_prefix"):
            if getattr(self, name) is not None:
                _check_floats(f"vlad/rtc/{name}", getattr(self, name), 2)

    @property
    def leftover(self) -> int | None:
        """k, or None where there is no previous chunk."""
        given = self.action_prefix if self.model_actions is None else self.model_actions
        return None if given is None else len(given)


def _check_count(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ObservationError(key, "an integer of 0 or more", _short(value))


def _check_choice(key: str, value: Any, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ObservationError(key, f"one of {', '.join(known)}", _short(value))


def _check_beta(value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ObservationError("vlad/rtc/beta", "a finite number above 0", _short(value))


def _check_floats(key: str, value: Any, ndim: int) -> None:
    expected = f"a float array with {ndim} {'axis' if ndim == 1 else 'axes'}"
    if not isinstance(value, np.ndarray):
        raise ObservationError(key, expected, type(value).__name__)
    if value.dtype.kind != "f" or value.ndim != ndim:
        raise ObservationError(key, expected, f"{value.dtype} of shape {list(value.shape)}")
    if not np.isfinite(value).all():
        raise ObservationError(key, "finite numbers", "NaN or infinity")


def _short(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.64}"
