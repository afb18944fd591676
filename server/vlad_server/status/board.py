"""What the status page shows of requests. Keeps nothing while nobody watches; lives on the event loop."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import itertools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.environments import Environment
from vlad_server.status.frames import thumbnails

WATCHED_FOR_S = 5.0
"""How long after the last look somebody still counts as watching; the page looks twice a second."""

STAGES = (
    *("total", "queue", "decode", "preprocess", "vision", "prefix", "denoise"),
    *("postprocess", "encode", "send"),
)
MAX_SAMPLES = 1024
MAX_SAMPLES_TOLD = 400
"""In one answer; what lies before them is left out and counted."""

MAX_REFUSALS = 20
MAX_REFUSAL_CHARACTERS = 300
MAX_CHOSEN = 4
"""Robots whose frames are kept at once, one for each watcher that chose another."""

FRAMES_EVERY_S = 0.2


@dataclasses.dataclass(frozen=True)
class Sample:
    """One reply: when it left (time.monotonic()), whose it was, milliseconds per entry of `STAGES`."""

    number: int
    left: float
    robot: str
    stages_ms: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class Look:
    """What one robot saw and got, copied.

    Attributes:
        taken: time.monotonic().
        frames: uint8 `[h, w, 3]` by camera key, at most `frames.MAX_SIDE` on a side.
        state: numbers by request key.
        actions: float64 `[action_horizon, action_width]`.
    """

    taken: float
    prompt: str
    frames: Mapping[str, npt.NDArray[np.uint8]]
    state: Mapping[str, list[float]]
    actions: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A request that got no chunk."""

    at: float
    robot: str
    code: str
    text: str


class StatusBoard:
    """Notes requests while somebody watches.

    Args:
        environment: says where images and state lie in an observation.
        watched_for_s: how long a look lasts.
    """

    def __init__(self, environment: Environment, *, watched_for_s: float = WATCHED_FOR_S) -> None:
        self._environment = environment
        self._watched_for_s = watched_for_s
        self.is_watched = False
        self._number = 0
        self._samples: collections.deque[Sample] = collections.deque(maxlen=MAX_SAMPLES)
        self._refusals: collections.deque[Refusal] = collections.deque(maxlen=MAX_REFUSALS)
        self._chosen: collections.OrderedDict[str, float] = collections.OrderedDict()
        self._looks: dict[str, Look] = {}
        self._forgetting: asyncio.TimerHandle | None = None

    def watch(self, robot: str | None) -> None:
        """Somebody looks now, at this robot if it is one; called on the event loop."""
        now = time.monotonic()
        self.is_watched = True
        if robot is not None:
            self._chosen.pop(robot, None)
            self._chosen[robot] = now
        for name, looked in list(self._chosen.items()):
            if now - looked > self._watched_for_s or len(self._chosen) > MAX_CHOSEN:
                del self._chosen[name]
                self._looks.pop(name, None)
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(self._watched_for_s, self._forget)

    def note_reply(
        self,
        robot: str,
        observation: Mapping[str, Any],
        message: Mapping[str, Any],
        *,
        encode_ms: float,
        send_ms: float,
    ) -> None:
        """A chunk has left; call it only while `is_watched`.

        Args:
            observation: that it was computed for; empty where nobody watched when it came.
        """
        now = time.monotonic()
        server, policy = message["server_timing"], message["policy_timing"]
        known = {
            "total": server["total_ms"] + encode_ms + send_ms,
            "queue": server["queue_ms"],
            "decode": server["decode_ms"],
            "encode": encode_ms,
            "send": send_ms,
        }
        stages = tuple(known.get(stage, policy.get(f"{stage}_ms")) for stage in STAGES)
        self._number += 1
        self._samples.append(Sample(self._number, now, robot, stages))
        if robot not in self._chosen or not observation:
            return
        earlier = self._looks.get(robot)
        if earlier is None or now - earlier.taken >= FRAMES_EVERY_S:
            self._looks[robot] = self._look(observation, message["actions"], now)

    def note_refusal(self, robot: str, code: str, text: str) -> None:
        """A request got no chunk; call it only while `is_watched`."""
        line = text.partition("\n")[0][:MAX_REFUSAL_CHARACTERS]
        self._refusals.append(Refusal(time.monotonic(), robot, code, line))

    def samples_after(self, number: int) -> tuple[list[Sample], int]:
        """The latest replies after the one of this number, oldest first, and how many are left out."""
        count = min(len(self._samples), max(0, self._number - number))
        told = list(itertools.islice(reversed(self._samples), min(count, MAX_SAMPLES_TOLD)))
        return told[::-1], count - len(told)

    @property
    def last_number(self) -> int:
        """The number of the latest reply; 0 before the first."""
        return self._number

    @property
    def refusals(self) -> list[Refusal]:
        """The latest ones, oldest first."""
        return list(self._refusals)

    def look_at(self, robot: str | None) -> Look | None:
        """The latest look at a robot; None where there is none."""
        return None if robot is None else self._looks.get(robot)

    def close(self) -> None:
        """Forget everything; the timer too."""
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._forget()

    def _forget(self) -> None:
        self.is_watched = False
        self._forgetting = None
        self._samples.clear()
        self._refusals.clear()
        self._chosen.clear()
        self._looks.clear()

    def _look(self, observation: Mapping[str, Any], actions: Any, now: float) -> Look:
        prompt = observation.get("prompt", "")
        state = {
            vector.key: np.atleast_1d(np.asarray(observation[vector.key], np.float64)).tolist()
            for vector in self._environment.state
            if vector.key in observation
        }
        return Look(
            taken=now,
            prompt=str(prompt.decode(errors="replace") if isinstance(prompt, bytes) else prompt)[:1000],
            frames=thumbnails(observation, self._environment),
            state=state,
            actions=np.array(actions, np.float64),
        )
