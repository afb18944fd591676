"""What a robot executed and which chunks it came from, kept for a plot or an analysis."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from typing import Any

import numpy as np

from vlad_client.chunk_schedule import Splice, Step

KINDS = ("idle", "action", "hold")


@dataclasses.dataclass(frozen=True)
class RecordedChunk:
    """A chunk that became the current one; times in seconds on the clock of the run."""

    requested_at: float
    arrived_at: float
    splice: Splice
    actions: Any


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """A run, in arrays of one row a control step or one row a chunk.

    Attributes:
        control_hz: rate asked for.
        step_time, step_kind, step_index, step_request: [steps]; seconds, position in `KINDS`, index in
            the episode, and number of the request whose chunk the action is from, or -1.
        step_action: [steps, action_width]; NaN where the robot was idle.
        chunk_request, chunk_requested_at, chunk_arrived_at, chunk_anchor, chunk_index: [chunks]; number,
            seconds, seconds, index of row 0, index at the arrival.
        chunk_expected_delay, chunk_jump: [chunks]; steps, and distance to the previous chunk at the
            arrival; NaN for none.
        chunk_end: [chunks]; rows of `chunk_rows` up to and with this chunk's last.
        chunk_rows: [rows, action_width]; the actions of all chunks, one after another.
    """

    control_hz: float
    step_time: Any
    step_kind: Any
    step_index: Any
    step_request: Any
    step_action: Any
    chunk_request: Any
    chunk_requested_at: Any
    chunk_arrived_at: Any
    chunk_anchor: Any
    chunk_index: Any
    chunk_expected_delay: Any
    chunk_jump: Any
    chunk_end: Any
    chunk_rows: Any

    def save(self, path: pathlib.Path) -> None:
        """Write a numpy archive.

        Raises:
            OSError: if the file cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        fields = dataclasses.fields(self)
        with path.open("wb") as file:
            np.savez_compressed(file, **{field.name: getattr(self, field.name) for field in fields})

    @classmethod
    def load(cls, path: pathlib.Path) -> RunRecord:
        """Read what `save` wrote.

        Raises:
            ValueError: for a file that is something else.
            OSError: if it cannot be read.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {field.name: file[field.name] for field in dataclasses.fields(cls)}
        except (KeyError, ValueError, AttributeError, EOFError) as error:
            raise ValueError(f"{path} is not the record of a run: {error}") from error
        return cls(**{**arrays, "control_hz": float(arrays["control_hz"])})

    def chunk(self, number: int) -> Any:
        """The actions of the `number`-th chunk, [horizon, action_width]."""
        first = 0 if number == 0 else self.chunk_end[number - 1]
        return self.chunk_rows[first : self.chunk_end[number]]


class RunRecorder:
    """Collects the steps and chunks of a run.

    Args:
        max_steps: older steps are forgotten, and the chunks that they were from.
    """

    def __init__(self, max_steps: int = 100_000) -> None:
        self._steps: collections.deque[tuple[float, Step]] = collections.deque(maxlen=max_steps)
        self._chunks: collections.deque[RecordedChunk] = collections.deque()

    def add_step(self, now: float, step: Step) -> None:
        """Record a control step."""
        self._steps.append((now, step))

    def add_chunk(self, now: float, splice: Splice, actions: Any) -> None:
        """Record a chunk that has just become the current one, with the actions that the server sent."""
        while len(self._chunks) > 1 and self._steps and self._chunks[1].arrived_at < self._steps[0][0]:
            self._chunks.popleft()
        self._chunks.append(RecordedChunk(now - splice.latency_s, now, splice, np.asarray(actions)))

    def record(self, control_hz: float) -> RunRecord:
        """The run so far; times count from its first step."""
        steps, chunks = list(self._steps), list(self._chunks)
        width = max([len(step.action) for _, step in steps if step.action is not None], default=0)
        idle = np.full(width, np.nan)
        began = steps[0][0] if steps else 0.0
        splices = [chunk.splice for chunk in chunks]
        return RunRecord(
            control_hz=control_hz,
            step_time=np.array([time - began for time, _ in steps]),
            step_kind=np.array([KINDS.index(step.kind) for _, step in steps], int),
            step_index=np.array([step.index for _, step in steps], int),
            step_request=np.array([_number(step.request) for _, step in steps], int),
            step_action=np.array(
                [idle if step.action is None else step.action for _, step in steps], float
            ).reshape(len(steps), width),
            chunk_request=np.array([splice.request for splice in splices], int),
            chunk_requested_at=np.array([chunk.requested_at - began for chunk in chunks]),
            chunk_arrived_at=np.array([chunk.arrived_at - began for chunk in chunks]),
            chunk_anchor=np.array([splice.anchor for splice in splices], int),
            chunk_index=np.array([splice.index for splice in splices], int),
            chunk_expected_delay=np.array([_or_nan(splice.expected_delay) for splice in splices]),
            chunk_jump=np.array([_or_nan(splice.jump) for splice in splices]),
            chunk_end=np.cumsum([len(chunk.actions) for chunk in chunks]).astype(int),
            chunk_rows=np.concatenate([np.zeros((0, width)), *(chunk.actions for chunk in chunks)]),
        )


def _number(request: int | None) -> int:
    return -1 if request is None else request


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
