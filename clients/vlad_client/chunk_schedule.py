"""Which action a robot executes next, and when it asks for more: pure logic on the caller's clock.

Control steps of an episode are counted by the actions that were executed: index n is the n-th action.
A chunk is anchored where its observation was taken: with n actions executed by then, row i of the chunk
belongs to index n + i. Whichever chunk is current, the next action is the row of the next index. So no
index is executed twice and none is skipped, however late, reordered or incomplete the chunks come; and a
chunk loses just the rows whose indices were executed while it was under way. A step in which the robot
has nothing to execute holds, and counts no index.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterable

import numpy as np

from vlad_client.latency_window import LatencyWindow
from vlad_client.real_time_config import RealTimeConfig

FIRST_RETRY_S = 0.05
LONGEST_RETRY_S = 1.0
MAX_SENT = 256
"""Requests that are remembered while a server answers none of them."""

Actions = np.ndarray


@dataclasses.dataclass(frozen=True)
class Step:
    """What the robot does in one control step.

    Attributes:
        kind: `action`, or `hold` where no action is left, or `idle` where there has been none yet.
        index: of the action; where there is none, of the one that is waited for.
        action: float array of shape [action_width]; None when idle.
        request: number of the request whose chunk the action is from; None unless `kind` is `action`.
    """

    kind: str
    index: int
    action: Any
    request: int | None


@dataclasses.dataclass(frozen=True)
class ChunkRequest:
    """A chunk to be asked for, with an observation that is taken now.

    Attributes:
        number: names the request in `accept`, `fail` and `supersede`.
        anchor: index of the action that the robot executes next.
        reset: whether the server must forget the previous episode.
        remaining: actions that the robot still has.
        previous: `chunk_id` of the current chunk; None where there is none that the server knows.
        executed: row of the current chunk that the robot executes next; 0 where there is no chunk.
        left: the rows from there on, where the chunk came by an earlier connection, which may have led to
            another server; else None.
        delay: control steps until the new chunk is expected; None before the first was timed.
    """

    number: int
    anchor: int
    reset: bool
    remaining: int
    previous: int | None
    executed: int
    delay: int | None
    left: Actions | None = None


@dataclasses.dataclass(frozen=True)
class Splice:
    """A chunk that has become the current one.

    Attributes:
        request: number of its request.
        chunk_id: the server's name for it; None where the server gives none.
        anchor: index of its row 0.
        index: of the action that the robot executes next; rows before it are dropped.
        latency_s: from the observation to now.
        expected_delay: the delay that its request announced.
        jump: L2 distance of its action for `index` from that of the previous chunk, in the units of the
            action; None where the previous chunk has none.
    """

    request: int
    chunk_id: int | None
    anchor: int
    index: int
    latency_s: float
    expected_delay: int | None
    jump: float | None

    @property
    def delay(self) -> int:
        """Control steps that were executed while the chunk was under way: the rows dropped."""
        return self.index - self.anchor


@dataclasses.dataclass
class _Sent:
    request: ChunkRequest
    at: float
    given_up: bool = False


@dataclasses.dataclass(frozen=True)
class _Current:
    request: int
    chunk_id: int | None
    anchor: int
    actions: Actions

    @property
    def end(self) -> int:
        return self.anchor + len(self.actions)


class ChunkSchedule:
    """One robot's actions. Not thread-safe; `now` is in seconds and must not decrease.

    Between `start_episode` and `end_episode` call `step` once a control step. Whenever `request_due`,
    take an observation and send it with what `begin_request` returns; report what became of it with
    `accept`, `fail` or `supersede`.
    """

    def __init__(self, config: RealTimeConfig) -> None:
        self._config = config
        self._latencies = LatencyWindow(config.latency_window, config.latency_percentile)
        self._next_latency_is_cold = True
        self._one_at_a_time = config.observation_hz is None
        self._in_episode = False
        self._reset_due = False
        self._index = 0
        self._current: _Current | None = None
        self._is_foreign = False
        self._last_action: Actions | None = None
        self._sent: dict[int, _Sent] = {}
        self._last_number = -1
        self._last_began = -math.inf
        self._failures = 0
        self._retry_at = -math.inf

    @property
    def in_episode(self) -> bool:
        """Whether actions are handed out."""
        return self._in_episode

    @property
    def index(self) -> int:
        """Of the action that is executed next: the number of actions executed in this episode."""
        return self._index

    @property
    def remaining(self) -> int:
        """Actions left."""
        return 0 if self._current is None else max(0, self._current.end - self._index)

    @property
    def latency_s(self) -> float | None:
        """What a chunk takes, from the observation until it can be executed; None before the first."""
        return self._latencies.estimate_s()

    def start_episode(self, now: float) -> None:
        """Forget the previous episode: its actions, and the chunks that are still under way."""
        self._forget()
        self._in_episode = True
        self._reset_due = True
        self._retry_at = now

    def end_episode(self) -> None:
        """Hand out nothing and ask for nothing until the next episode."""
        self._forget()
        self._in_episode = False

    def connected(self, *, continues: bool = False) -> None:
        """Take note of a new connection: the first chunk that it brings is no measure of the others.

        Args:
            continues: whether chunks will be computed as continuations. They are then asked for one at a
                time: two that continue the same chunk would not fit each other.
        """
        self._next_latency_is_cold = True
        self._is_foreign = self._current is not None
        self._one_at_a_time = continues or self._config.observation_hz is None

    def step(self) -> Step:
        """Take the action of one control step, which the caller must execute."""
        current = self._current
        if not self._in_episode:
            return Step("idle", self._index, None, None)
        if current is None or self._index >= current.end:
            if self._last_action is None:
                return Step("idle", self._index, None, None)
            return Step("hold", self._index, self._hold_action(self._last_action), None)
        action = current.actions[self._index - current.anchor]
        step = Step("action", self._index, action, current.request)
        self._last_action = action
        self._index += 1
        return step

    def period_s(self, now: float) -> float:
        """Seconds from this control step to the next: 1 / `control_hz`, more while slowing down."""
        period = 1 / self._config.control_hz
        slowest = self._config.slowest_fraction
        if slowest == 1 or not self.remaining:
            return period
        pending = [sent for sent in self._sent.values() if not sent.given_up]
        expected_s = self.latency_s or 0.0
        left_s = min((sent.at for sent in pending), default=now) + expected_s - now
        if left_s > 0 and pending:
            return min(max(period, left_s / self.remaining), period / slowest)
        # Overdue or not even asked for: there is nothing to compute the rate from.
        return period / slowest if self.remaining <= self._least_remaining() else period

    def request_due(self, now: float) -> bool:
        """Whether to take an observation and ask for a chunk."""
        if not self._in_episode:
            return False
        self._give_up(now)
        if now < self._retry_at:
            return False
        if self._one_at_a_time and any(not sent.given_up for sent in self._sent.values()):
            return False
        rate = self._config.observation_hz
        if rate is not None:
            return now - self._last_began >= 1 / rate - 1e-9
        if self._current is None or self.remaining <= self._least_remaining():
            return True
        wanted = self._config.execute_steps or math.ceil(len(self._current.actions) / 2)
        return self._index - self._current.anchor >= wanted

    def begin_request(self, now: float, number: int) -> ChunkRequest:
        """Anchor a request at the present step; its observation must be taken after this call.

        Args:
            number: larger than those before.

        Raises:
            ValueError: if it is not.
        """
        if number <= self._last_number:
            raise ValueError(f"request numbers must increase, but {number} follows {self._last_number}")
        current = self._current
        request = ChunkRequest(
            number=number,
            anchor=self._index,
            reset=self._reset_due,
            remaining=self.remaining,
            previous=current.chunk_id if current is not None and self.remaining else None,
            executed=0 if current is None else self._index - current.anchor,
            delay=self._expected_delay(),
            left=self._left(),
        )
        if len(self._sent) >= MAX_SENT:
            forgotten = self._sent.pop(next(iter(self._sent)))
            request = dataclasses.replace(request, reset=request.reset or forgotten.request.reset)
        self._sent[number] = _Sent(request, now)
        self._last_number = number
        self._last_began = now
        self._reset_due = False
        return request

    def accept(
        self,
        number: int,
        actions: Any,
        now: float,
        *,
        chunk_id: int | None = None,
        continued: bool = False,
    ) -> Splice | None:
        """Make the chunk of a request the current one.

        Args:
            actions: finite numbers of shape [horizon, action_width], in the robot's units.
            continued: whether the server computed it as the continuation of the chunk that was current
                when it was asked for; it is then never blended.

        Returns:
            None where the chunk is of no use: of another episode, older than the current one, with no row
            for the next index, or the continuation of a chunk that was replaced meanwhile.

        Raises:
            ValueError: for actions that a robot cannot execute; the request has failed then.
        """
        sent = self._sent.get(number)
        if sent is None:
            return None
        try:
            chunk = self._checked(actions)
        except ValueError:
            self.fail([number], now)
            raise
        self._latencies.add(now - sent.at, cold=self._next_latency_is_cold)
        self._next_latency_is_cold = False
        self._failures = 0
        # Requests arrive in order, so whatever reset this episode began with has arrived.
        self._reset_due = False
        # Older requests may still be answered, but never to better purpose.
        self._sent = {other: waiting for other, waiting in self._sent.items() if other > number}
        previous, anchor = self._current, sent.request.anchor
        if self._index >= anchor + len(chunk):
            return None
        if continued and self.remaining and previous is not None:
            if sent.request.previous != previous.chunk_id:
                # It continues a chunk that another one has replaced meanwhile: it would not fit.
                return None
        else:
            chunk = self._blended(chunk, anchor)
        self._current = _Current(number, chunk_id, anchor, chunk)
        self._is_foreign = False
        return Splice(
            request=number,
            chunk_id=chunk_id,
            anchor=anchor,
            index=self._index,
            latency_s=now - sent.at,
            expected_delay=sent.request.delay,
            jump=_jump(previous, self._current, self._index),
        )

    def fail(self, numbers: Iterable[int], now: float) -> None:
        """Take note that requests get no chunk; asks again after a pause that grows with each failure."""
        lost = [self._sent.pop(number) for number in numbers if number in self._sent]
        # A reset that got lost is due again, and harmless where it did arrive.
        self._reset_due |= any(sent.request.reset for sent in lost)
        if any(not sent.given_up for sent in lost):
            self._failures += 1
            self._retry_at = now + min(FIRST_RETRY_S * 2 ** (self._failures - 1), LONGEST_RETRY_S)

    def supersede(self, numbers: Iterable[int]) -> None:
        """Take note that requests get no chunk because the server has a fresher observation."""
        for number in numbers:
            self._sent.pop(number, None)

    def _forget(self) -> None:
        self._index = 0
        self._current = None
        self._last_action = None
        self._sent = {}
        self._failures = 0
        self._last_began = -math.inf

    def _give_up(self, now: float) -> None:
        """Stop waiting for overdue chunks; one that comes after all is still used if it is of use."""
        for sent in self._sent.values():
            if not sent.given_up and now - sent.at >= self._config.request_timeout_s:
                sent.given_up = True
                self._reset_due |= sent.request.reset

    def _left(self) -> Actions | None:
        if self._current is None or not self._is_foreign or not self.remaining:
            return None
        return self._current.actions[self._index - self._current.anchor :]

    def _least_remaining(self) -> int:
        return self._steps(self.latency_s or 0.0) + self._config.margin_steps

    def _expected_delay(self) -> int | None:
        # While a robot holds it executes nothing, so no delay is longer than what is left.
        return None if self.latency_s is None else min(self._steps(self.latency_s), self.remaining)

    def _steps(self, seconds: float) -> int:
        return math.ceil(seconds * self._config.control_hz - 1e-9)

    def _checked(self, actions: Any) -> Actions:
        chunk = np.asarray(actions)
        if chunk.ndim != 2 or not chunk.size or chunk.dtype.kind not in "fiu":
            raise ValueError(
                f"expected actions of shape [horizon, width], received {chunk.dtype} of {chunk.shape}"
            )
        if not np.isfinite(chunk).all():
            raise ValueError("the chunk holds actions that are not finite")
        known = self._last_action
        if known is not None and chunk.shape[1] != len(known):
            raise ValueError(f"expected actions of width {len(known)}, received {chunk.shape[1]}")
        widest = max(self._config.zero_columns or (), default=-1)
        if widest >= chunk.shape[1]:
            raise ValueError(f"zero_columns names column {widest}, but actions have {chunk.shape[1]}")
        return chunk

    def _blended(self, chunk: Actions, anchor: int) -> Actions:
        steps = min(self._config.blend_steps, self.remaining, anchor + len(chunk) - self._index)
        if self._current is None or steps < 1:
            return chunk
        new, old = self._index - anchor, self._index - self._current.anchor
        weight = np.arange(1, steps + 1)[:, None] / (self._config.blend_steps + 1)
        blended = chunk.astype(np.float64)
        blended[new : new + steps] *= weight
        blended[new : new + steps] += (1 - weight) * self._current.actions[old : old + steps]
        return blended

    def _hold_action(self, last: Actions) -> Actions:
        if self._config.late != "hold_zero":
            return last
        held = last.copy()
        columns = self._config.zero_columns
        held[slice(None) if columns is None else list(columns)] = 0
        return held


def _jump(previous: _Current | None, current: _Current, index: int) -> float | None:
    if previous is None or index >= previous.end:
        return None
    before = previous.actions[index - previous.anchor]
    return float(np.linalg.norm(current.actions[index - current.anchor] - before))
