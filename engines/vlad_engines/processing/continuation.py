"""Decides how one chunk continues the chunk before it: mode, extent, and the numbers for the backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError, ObservationError
from vlad_configs.rtc import (
    DEFAULT_MODE,
    DEFAULT_SCHEDULE,
    GUIDANCE_MODES,
    GUIDANCE_SCHEDULES,
    ChunkContinuation,
    GuidanceMode,
    GuidanceSchedule,
)
from vlad_engines.processing.guidance import Guidance, guidance_gains, prefix_weights
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.processor import Processor

MIN_EXECUTED = 1
"""The last actions of a new chunk that the old one never holds, even without delay: at least so many."""

LARGEST_TARGET = 100.0
"""Normalised actions lie within a few units. What is this far off was meant in other units."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one chunk is sampled.

    Attributes:
        guidance: for the backend; None for plain sampling.
        mode: what is done; `off` for plain sampling.
        delay: as requested. The new chunk is valid from there.
        prefix_end: index behind the last action that is drawn to the previous chunk.
        beta, schedule: of the guidance; None in the modes that have none.
        note: why this is not what was asked for, or None.
    """

    guidance: Guidance | None
    mode: str
    delay: int
    prefix_end: int = 0
    beta: float | None = None
    schedule: GuidanceSchedule | None = None
    note: str | None = None

    def report(self) -> dict[str, Any]:
        """For the reply; plain JSON and msgpack types."""
        return {
            "mode": self.mode,
            "delay": self.delay,
            "prefix_end": self.prefix_end,
            "beta": self.beta,
            "schedule": self.schedule,
            "valid_from": self.delay,
            "note": self.note,
        }


class ContinuationPlanner:
    """Plans continuations for one policy. Holds no state between requests.

    Args:
        processor: converts leftovers into the model's space.
        times: of the policy's Euler steps, 1.0 first.
        horizon, action_dim: shape of the model's chunk.
        action_width: columns that the robot has; the others only pad and are never guided.
        modes: what the backend can do: nothing, or `guided_identity` and whatever else.
        trained_max_delay: D, where the checkpoint was trained to continue chunks after delays 0..D.

    Raises:
        ConfigError: for a mode that does not exist, or without the one that all others fall back to.
    """

    def __init__(
        self,
        processor: Processor,
        *,
        times: Sequence[float],
        horizon: int,
        action_dim: int,
        action_width: int,
        modes: Sequence[GuidanceMode],
        trained_max_delay: int | None,
    ) -> None:
        if unknown := sorted(set(modes) - set(GUIDANCE_MODES)):
            raise ConfigError(f"unknown guidance modes {', '.join(unknown)}")
        if modes and DEFAULT_MODE not in modes:
            raise ConfigError(f"a backend that continues chunks must offer {DEFAULT_MODE}, not only {modes}")
        self._processor = processor
        self._times = tuple(times)
        self._horizon = horizon
        self._action_dim = action_dim
        self._action_width = action_width
        self._trained_max_delay = trained_max_delay
        usable = set(modes) if trained_max_delay else set(modes) - {"trained"}
        self._modes = tuple(mode for mode in GUIDANCE_MODES if mode in usable)

    @property
    def modes(self) -> tuple[GuidanceMode, ...]:
        """What can be requested here, beside `auto` and `off`."""
        return self._modes

    def capabilities(self) -> dict[str, Any] | None:
        """For the metadata: what a client can ask for; None where chunks cannot be continued."""
        if not self._modes:
            return None
        return {
            "modes": list(self._modes),
            "default_mode": DEFAULT_MODE,
            "schedules": list(GUIDANCE_SCHEDULES),
            "default_schedule": DEFAULT_SCHEDULE,
            "beta": float(len(self._times)),
            "trained_max_delay": self._trained_max_delay if "trained" in self._modes else None,
        }

    def plan(self, continuation: ChunkContinuation, inputs: ModelInputs) -> Plan:
        """Decide for one request.

        Args:
            inputs: of the same request.

        Raises:
            ObservationError: for a mode that is not to be had here, or a leftover that does not fit.
        """
        leftover, delay = continuation.leftover, continuation.delay
        self._check(continuation)

        def plain(note: str | None) -> Plan:
            return Plan(None, "off", delay, note=note)

        if continuation.mode == "off":
            return plain(None)
        if leftover is None:
            return plain("there is no previous chunk")
        if leftover == 0:
            return plain("the previous chunk is used up")
        if not self._modes:
            return plain("this backend cannot continue chunks")
        notes: list[str] = []
        mode = self._choose(continuation, leftover, notes)
        if mode == "trained" and delay == 0:
            return plain("without delay, a checkpoint trained for delays samples freely")
        start, end = self._extent(continuation, leftover, mode, notes)
        target = self._target(continuation, inputs)
        if np.abs(target[:end]).max(initial=0.0) > LARGEST_TARGET:
            return plain("the previous chunk lies outside the range of this checkpoint's statistics")
        note = "; ".join(notes) or None
        if mode == "trained":
            nothing = np.zeros_like(target)
            guidance = Guidance(mode, nothing, target, guidance_gains(self._times, 1.0), frozen=delay)
            return Plan(guidance, mode, delay, delay, note=note)
        schedule = continuation.schedule or DEFAULT_SCHEDULE
        beta = float(len(self._times) if continuation.beta is None else continuation.beta)
        weights = np.zeros_like(target)
        weights[:, : self._action_width] = prefix_weights(schedule, start, end, self._horizon)[:, None]
        if not weights.any():
            return plain("; ".join([*notes, f"with delay {start} and prefix end {end} no action is held"]))
        guidance = Guidance(mode, weights, target, guidance_gains(self._times, beta))
        return Plan(guidance, mode, delay, end, beta, schedule, note)

    def _check(self, continuation: ChunkContinuation) -> None:
        mode = continuation.mode
        if mode not in ("auto", "off", *self._modes):
            raise ObservationError(
                "vlad/rtc/mode", f"one of {', '.join(('auto', *self._modes, 'off'))} (of this policy)", mode
            )
        for name, width in (("model_actions", self._action_dim), ("action_prefix", self._action_width)):
            array = getattr(continuation, name)
            if array is not None and (array.shape[1] != width or len(array) > self._horizon):
                raise ObservationError(
                    f"vlad/rtc/{name}",
                    f"shape [k, {width}] with k at most {self._horizon}",
                    f"shape {list(array.shape)}",
                )

    def _choose(self, continuation: ChunkContinuation, leftover: int, notes: list[str]) -> GuidanceMode:
        """The mode to run; says why where it is not the one asked for."""
        wanted, delay, longest = continuation.mode, continuation.delay, self._trained_max_delay
        if wanted == "auto":
            wanted = "trained" if "trained" in self._modes else DEFAULT_MODE
        if wanted != "trained":
            return next(mode for mode in self._modes if mode == wanted)
        assert longest is not None
        if delay > longest:
            reason = f"delay {delay} is longer than the {longest} that the checkpoint was trained for"
        elif delay > leftover:
            reason = f"the {leftover} actions left do not last for delay {delay}"
        elif delay >= self._horizon:
            reason = f"delay {delay} leaves nothing of a chunk of {self._horizon}"
        else:
            return "trained"
        notes.append(f"{reason}: {DEFAULT_MODE} instead of trained")
        return DEFAULT_MODE

    def _extent(
        self, continuation: ChunkContinuation, leftover: int, mode: GuidanceMode, notes: list[str]
    ) -> tuple[int, int]:
        """Where the weights begin to fall, and where they end."""
        delay, end = continuation.delay, continuation.prefix_end
        if mode == "trained":
            return delay, delay
        if end is None:
            # Long delays would leave actions unheld that the robot executes anyway: never end before them.
            end = max(self._horizon - max(delay, MIN_EXECUTED), delay)
        elif delay > end:
            notes.append(f"delay {delay} lies behind the requested prefix end {end}")
        end = min(end, leftover)
        if delay > leftover and not notes:
            notes.append(f"the {leftover} actions left do not last for delay {delay}")
        return min(delay, end), end

    def _target(self, continuation: ChunkContinuation, inputs: ModelInputs) -> npt.NDArray[np.float32]:
        """The leftover in the model's space, `[H, A]`, zeros behind it and in padding columns."""
        if continuation.action_prefix is not None:
            rows = self._processor.actions_to_model(continuation.action_prefix, inputs)
            if np.abs(rows).max() > LARGEST_TARGET:
                row, column = np.unravel_index(np.abs(rows).argmax(), rows.shape)
                raise ObservationError(
                    "vlad/rtc/action_prefix",
                    "actions in the robot's units, in the range of the checkpoint's statistics",
                    f"{continuation.action_prefix[row, column]:g} in column {column}, "
                    f"{rows[row, column]:g} when normalised",
                )
        else:
            assert continuation.model_actions is not None
            rows = self._processor.reanchor(continuation.model_actions, continuation.anchor_state, inputs)
        target = np.zeros((self._horizon, self._action_dim), np.float32)
        target[: len(rows), : self._action_width] = rows
        return target
