"""How a worker answers requests: alone, several together, or one beside the other.

What needs no device is done beside it: the next requests are prepared while it computes, by a thread of its
own, and the replies to those before are made and sent once it computes the next ones. A request that finds
the device idle is prepared by the thread that called `answer`, which waits for it itself; the other one
sleeps on, because two threads that wake up for one message hold each other up. Everything that touches the
device stays in that thread, but for policies that overlap requests themselves.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from vlad_configs.errors import EngineError, ObservationError
from vlad_engines import worker_protocol as protocol
from vlad_engines.device_faults import DeviceFaults

logger = logging.getLogger("vlad.worker")

MAX_REASON_BYTES = 4096
MAX_DETAIL_CHARACTERS = 32768

_device = DeviceFaults()
"""A worker has one device, and it is gone or full for all of its requests."""

_CUT_MARK = "\n[... too long to show in full]"

Send = Callable[[protocol.Message], None]


class Inbox(Protocol):
    """Where messages of the server come from. One thread at a time receives; another may watch meanwhile."""

    def receive(self) -> protocol.Message | None:
        """Wait for the next message; None once the server is gone."""
        ...

    def has_message(self) -> bool:
        """True where `receive` would return at once."""
        ...

    def watch(self) -> None:
        """Wait until `has_message` while `wake_watcher` is on."""
        ...

    def wake_watcher(self, is_on: bool) -> None:
        """Whether a message ends `watch`; it does until told otherwise. Takes a microsecond."""
        ...


class Begun(Protocol):
    """Requests that are computed together; `vlad_engines`' `BegunBatch` is one."""

    def wait(self) -> None:
        """Return when the chunks are computed. Called once; before anything else is begun, but for policies
        that overlap.

        Raises:
            Exception: where one of them cannot be computed; each is then computed alone.
        """
        ...

    def reply(self, index: int) -> Mapping[str, Any]:
        """To one of the requests.

        Returns:
            `actions` float64 `[H, action width]`; `policy_timing`, milliseconds by name; where the policy
            can continue chunks, `model_actions` float32 `[H, action_dim]` and `anchor_state` float64
            `[state width]`, and `rtc` beside a continuation. `notes` where the observation is odd.

        Raises:
            Exception: where this one's chunk is of no use.
        """
        ...


class Policy(Protocol):
    """What a worker serves.

    Observations hold the robot's keys, the reserved ones of `docs/protocol.md` that matter to a policy, and
    `worker_protocol.CONTINUATION_KEY` where the chunk shall continue another one.
    """

    @property
    def metadata(self) -> Mapping[str, Any]:
        """For clients; msgpack types only."""
        ...

    @property
    def batch_sizes(self) -> Sequence[int]:
        """How many requests `begin` takes, ascending, 1 among them."""
        ...

    @property
    def overlaps(self) -> bool:
        """True where some requests may be begun while others are computed, and are computed beside them."""
        ...

    def start_report(self) -> protocol.StartReport:
        """How the start went."""
        ...

    def device_memory(self) -> protocol.DeviceMemory | None:
        """The memory of its device now; None without one. Takes microseconds."""
        ...

    def prepare(self, observation: Mapping[str, Any]) -> Any:
        """What needs no device: for `begin`.

        Called from two threads, never at the same time; while the other one computes, or waits as well.

        Raises:
            ObservationError: for an observation that does not fit.
        """
        ...

    def begin(self, prepared: Sequence[Any]) -> Begun:
        """Let the device compute some requests together, one of `batch_sizes`.

        Raises:
            Exception: as `Begun.wait`.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """A request that waits for the device.

    Attributes:
        value: of `Policy.prepare`; meaningless beside an error.
        error: why it cannot be computed; None where it can.
        began: the time.perf_counter() at which its preparation began.
    """

    request: protocol.Infer
    value: Any
    error: Exception | None
    began: float


@dataclasses.dataclass(frozen=True)
class _Computing:
    """Some requests on the device.

    Attributes:
        begun: or why they could not be begun.
        started: computing counts from there, by time.perf_counter.
    """

    requests: Sequence[_Prepared]
    begun: Begun | Exception
    started: float


@dataclasses.dataclass(frozen=True)
class _Ended:
    """A request that the device is done with.

    Attributes:
        reply: makes the reply, or raises why there is none.
        seconds: that computing took.
        size: how many were computed together.
    """

    request: protocol.Infer
    reply: Callable[[], Mapping[str, Any]]
    started: float
    seconds: float
    size: int


def answer(
    policy: Policy,
    slots: protocol.SharedSlots,
    inbox: Inbox,
    send: Send,
    between: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests until the server is gone.

    Args:
        send: called from two threads where the policy overlaps requests.
        between: called on this thread before it looks for the next requests.
    """
    if policy.overlaps:
        _answer_overlapping(policy, slots, inbox, send, between)
        return
    # The server hands over one batch more than is being computed: there is no need to bound this.
    prepared: queue.SimpleQueue[list[_Prepared]] = queue.SimpleQueue()
    taking = threading.Lock()

    def take() -> list[_Prepared]:
        return [_prepare(policy, slots, request) for request in _receive_batch(inbox)]

    def prepare_ahead() -> None:
        batch: list[_Prepared] | None = None
        while batch != []:
            inbox.watch()
            with taking:
                # Unless the answering thread has taken it, which had nothing to do any more.
                if inbox.has_message():
                    prepared.put(batch := take())

    def next_batch() -> list[_Prepared]:
        with taking:
            if not prepared.empty():
                return prepared.get()
            inbox.wake_watcher(False)
            batch = take()
            inbox.wake_watcher(True)
            return batch

    wanted: collections.deque[_Prepared] = collections.deque()

    def begin_next(free_since: float, *, wait: bool) -> _Computing | None:
        """Begin what is to be computed next.

        Args:
            free_since: when the device had nothing to do any more.
            wait: for requests, where there are none.

        Returns:
            None where there is nothing, or the server is gone.
        """
        while not wanted:
            if not wait and prepared.empty():
                return None
            batch = next_batch()
            if not batch:
                return None
            wanted.extend(_still_wanted(slots, batch, send))
        return _begin(policy, _next_ones(policy, wanted), free_since)

    def begin_alone(requests: Sequence[_Prepared]) -> _Computing:
        return _begin(policy, requests, time.perf_counter())

    threading.Thread(target=prepare_ahead, name="preparer", daemon=True).start()
    between()
    computing = begin_next(time.perf_counter(), wait=True)
    while computing is not None:
        ended = _wait(computing, begin_alone)
        free_since = time.perf_counter()
        # The device comes first, the replies where it has something to do.
        following = begin_next(free_since, wait=False)
        for one in ended:
            send(_chunk_or_error(slots, one))
        between()
        computing = following or begin_next(free_since, wait=True)


def _receive_batch(inbox: Inbox) -> list[protocol.Infer]:
    """The requests that belong together; none once the server is gone."""
    batch: list[protocol.Infer] = []
    while (message := inbox.receive()) is not None:
        assert isinstance(message, protocol.Infer)
        batch.append(message)
        if not message.more:
            return batch
    return []


def _answer_overlapping(
    policy: Policy, slots: protocol.SharedSlots, inbox: Inbox, send: Send, between: Callable[[], None]
) -> None:
    begun: queue.SimpleQueue[_Computing | None] = queue.SimpleQueue()
    one_at_a_time = threading.Lock()

    def begin(requests: Sequence[_Prepared]) -> _Computing:
        # The thread below begins the requests of a batch that failed.
        with one_at_a_time:
            return _begin(policy, requests, free_since=0.0)

    def finish() -> None:
        while (computing := begun.get()) is not None:
            for one in _wait(computing, begin):
                send(_chunk_or_error(slots, one))

    finisher = threading.Thread(target=finish, name="finisher", daemon=True)
    finisher.start()
    between()
    while batch := _receive_batch(inbox):
        prepared = [_prepare(policy, slots, request) for request in batch]
        wanted = collections.deque(_still_wanted(slots, prepared, send))
        while wanted:
            begun.put(begin(_next_ones(policy, wanted)))
        between()
    begun.put(None)
    finisher.join()


def _is_wanted(slots: protocol.SharedSlots, request: protocol.Infer) -> bool:
    """Mark a request as begun; False where nobody wants its result any more."""
    slots.begin(request.slot)
    is_late = request.begin_by is not None and time.perf_counter() > request.begin_by
    return not is_late and not slots.is_revoked(request.slot)


def _prepare(policy: Policy, slots: protocol.SharedSlots, request: protocol.Infer) -> _Prepared:
    began = time.perf_counter()
    try:
        value = policy.prepare(slots.load_observation(request.observation))
    except Exception as error:
        return _Prepared(request, None, error, began)
    return _Prepared(request, value, None, began)


def _still_wanted(slots: protocol.SharedSlots, batch: Sequence[_Prepared], send: Send) -> Iterator[_Prepared]:
    """Those of a batch that are to be computed; the others are answered."""
    for one in batch:
        if not _is_wanted(slots, one.request):
            send(protocol.Skipped(one.request.request_id))
        elif one.error is not None:
            send(_failure(one.request, one.error))
        else:
            yield one


def _next_ones(policy: Policy, wanted: collections.deque[_Prepared]) -> list[_Prepared]:
    """Take as many as can be computed together."""
    size = max(size for size in policy.batch_sizes if size <= len(wanted))
    return [wanted.popleft() for _ in range(size)]


def _begin(policy: Policy, requests: Sequence[_Prepared], free_since: float) -> _Computing:
    # Computing counts from when the device was free, and from the preparation where that came later.
    started = max(free_since, requests[0].began)
    try:
        return _Computing(requests, policy.begin([one.value for one in requests]), started)
    except Exception as error:
        return _Computing(requests, error, started)


def _wait(computing: _Computing, begin_alone: Callable[[Sequence[_Prepared]], _Computing]) -> list[_Ended]:
    """Wait for some requests. Where one fails, each is computed alone, for the others to get their chunks."""
    requests, begun, started = computing.requests, computing.begun, computing.started
    size = len(requests)
    try:
        if isinstance(begun, Exception):
            raise begun
        begun.wait()
    except Exception as error:
        if size == 1:
            return [_Ended(requests[0].request, functools.partial(_raise, error), started, 0.0, 1)]
        logger.exception("a batch of %d failed; each of its requests is computed alone", size)
        return [ended for one in requests for ended in _wait(begin_alone([one]), begin_alone)]
    seconds = time.perf_counter() - started
    return [
        _Ended(one.request, functools.partial(begun.reply, index), started, seconds, size)
        for index, one in enumerate(requests)
    ]


def _raise(error: Exception) -> Mapping[str, Any]:
    raise error


def _chunk_or_error(slots: protocol.SharedSlots, ended: _Ended) -> protocol.Message:
    try:
        return _chunk(slots, ended.request, ended.reply(), ended.started, ended.seconds, ended.size)
    except Exception as error:
        return _failure(ended.request, error)


def _failure(request: protocol.Infer, error: Exception) -> protocol.Message:
    if isinstance(error, ObservationError):
        return protocol.Refused(request.request_id, error.key, error.expected, error.received)
    _device.react(error)
    if isinstance(error, EngineError):
        return protocol.Failed(request.request_id, at_most(MAX_REASON_BYTES, str(error)), "")
    reason = at_most(MAX_REASON_BYTES, f"{type(error).__name__}: {error}")
    detail = "".join(traceback.format_exception(error))[-MAX_DETAIL_CHARACTERS:]
    return protocol.Failed(request.request_id, reason, detail)


def _chunk(
    slots: protocol.SharedSlots,
    request: protocol.Infer,
    result: Mapping[str, Any],
    started: float,
    seconds: float,
    batch: int,
) -> protocol.Chunk:
    names = ("actions", "model_actions", "anchor_state") if request.continuable else ("actions",)
    arrays = slots.store_reply(request.slot, {name: result[name] for name in names if name in result})
    timing = dict(result["policy_timing"])
    rtc, notes = result.get("rtc"), result.get("notes")
    return protocol.Chunk(request.request_id, arrays, started, seconds, batch, timing, rtc, notes)


def at_most(limit: int, text: str) -> str:
    """The text cut to `limit` bytes of UTF-8, and a mark where something is gone."""
    encoded = text.encode(errors="replace")
    return encoded[:limit].decode(errors="ignore") + _CUT_MARK * (len(encoded) > limit)
