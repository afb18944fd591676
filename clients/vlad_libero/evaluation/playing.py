"""Which action comes next while chunks take their time; counted in control steps, without a clock."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Literal, Mapping

import numpy as np
import numpy.typing as npt

from vlad_libero.errors import LiberoError

Vector = npt.NDArray[np.float64]
PlayMode = Literal["lockstep", "overlap", "rtc"]

# Asks for a chunk of the scene as it is, with more keys for the request; returns the reply.
Infer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Playing:
    """How chunks are played.

    Attributes:
        replan_steps: actions executed between two requests.
        delay_steps: control steps between a request and the chunk's arrival.
        mode: `lockstep` stands still until the chunk is there; `overlap` plays the old chunk on and
            enters the new one at the action of that time; `rtc` also asks the server to continue the
            old chunk.
        prefix_end: for `rtc`, index in the new chunk behind the last action that the old one draws to
            itself; None leaves that to the server, which draws as far as the old chunk goes.
    """

    replan_steps: int
    delay_steps: int = 0
    mode: PlayMode = "lockstep"
    prefix_end: int | None = None

    def __post_init__(self) -> None:
        if self.replan_steps < 1 or self.delay_steps < 0:
            raise LiberoError("replan steps must be at least 1 and delay steps not negative")
        if self.mode not in ("lockstep", "overlap", "rtc"):
            raise LiberoError(f"chunks are played lockstep, overlap or rtc, not '{self.mode}'")
        if self.prefix_end is not None and (self.mode != "rtc" or self.prefix_end < 0):
            raise LiberoError("a prefix end must not be negative, and is only for chunks that are played rtc")

    def settings(self) -> dict[str, Any]:
        """For people and for comparing runs: what is set."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


class Player:
    """The actions of one episode."""

    def __init__(self, playing: Playing, infer: Infer, hold: Vector) -> None:
        """`hold` is executed where there is no action; its last number, the gripper, follows the plan."""
        self._playing, self._infer = playing, infer
        self._hold = hold.copy()
        self._chunk: Vector = np.empty((0, len(hold)))
        self._chunk_id: int | None = None
        self._index = 0  # In the chunk, of the next action.
        self._since_request = 0
        self._coming: tuple[Vector, int | None, int] | None = None  # Chunk, its id, steps to go.

    def next(self) -> Vector:
        """The action of this control step; asks for a chunk where it is time."""
        self._accept()
        if self._coming is None and self._is_due():
            self._request()
            self._accept()
        if self._coming is not None:
            chunk, chunk_id, left = self._coming
            self._coming = chunk, chunk_id, left - 1
            if self._playing.mode == "lockstep":
                return self._hold
        self._since_request += 1
        if self._index >= len(self._chunk):
            return self._hold
        action: Vector = self._chunk[self._index]
        self._index += 1
        self._hold[-1] = action[-1]
        return action

    def _is_due(self) -> bool:
        return len(self._chunk) == 0 or self._since_request >= self._playing.replan_steps

    def _request(self) -> None:
        extras: dict[str, Any] = {}
        if self._playing.mode == "rtc":
            # Any of these keys makes the reply name its chunk.
            extras["vlad/reset"] = self._chunk_id is None
            if self._chunk_id is not None:
                extras["vlad/rtc"] = {
                    "prev_chunk_id": self._chunk_id,
                    "executed": self._index,
                    "delay": self._playing.delay_steps,
                }
                if self._playing.prefix_end is not None:
                    extras["vlad/rtc"]["prefix_end"] = self._playing.prefix_end
        reply = self._infer(extras)
        chunk = np.array(reply["actions"], np.float64)
        needed = self._playing.replan_steps
        if self._playing.mode != "lockstep":
            needed += self._playing.delay_steps
        if chunk.ndim != 2 or chunk.shape[1] != len(self._hold) or len(chunk) < needed:
            raise LiberoError(
                f"the policy's chunk has the shape {chunk.shape}, expected at least {needed} rows of "
                f"{len(self._hold)} for {self._playing.replan_steps} replan and "
                f"{self._playing.delay_steps} delay steps"
            )
        self._coming = chunk, reply.get("chunk_id"), self._playing.delay_steps
        self._since_request = 0

    def _accept(self) -> None:
        """Take a chunk that has arrived."""
        if self._coming is None or self._coming[2] > 0:
            return
        is_first = len(self._chunk) == 0
        self._chunk, self._chunk_id, _ = self._coming
        self._coming = None
        # The robot stood still for the first chunk, so that one begins with its first action.
        enters_late = self._playing.mode != "lockstep" and not is_first
        self._index = self._playing.delay_steps if enters_late else 0
        if not enters_late:
            self._since_request = 0
