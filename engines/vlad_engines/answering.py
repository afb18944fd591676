"""How a worker answers requests: alone, several together, or one beside the other.

What needs no device is done beside it: the next requests are prepared while it computes, by a thread of its
own. A request that finds the device idle is prepared by the thread that called `answer`, which waits for it
itself; the other one sleeps on, because two threads that wake up for one message hold each other up.
Everything that touches the device stays in that thread, but for policies that overlap requests themselves.
"""

from __future__ import annotations

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


class Pending(Protocol):
    """A chunk that is being computed; `vlad_engines`' `PendingChunk` is one."""

    def result(self) -> Mapping[str, Any]:
        """Wait for it; what `Policy.infer` returns and raises."""
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
        """How many requests `infer_batch` takes, ascending, 1 among them."""
        ...

    @property
    def overlaps(self) -> bool:
        """True where `start` returns while the device still computes the observation before."""
        ...

    def start_report(self) -> protocol.StartReport:
        """How the start went."""
        ...

    def device_memory(self) -> protocol.DeviceMemory | None:
        """The memory of its device now; None without one. Takes microseconds."""
        ...

    def start(self, observation: Mapping[str, Any]) -> Pending:
        """Begin one chunk; always called from one thread, while another waits for results."""
        ...

    def prepare(self, observation: Mapping[str, Any]) -> Any:
        """What needs no device: for `infer` and `infer_batch`.

        Called from two threads, never at the same time; while the other one computes, or waits as well.

        Raises:
            ObservationError: for an observation that does not fit.
        """
        ...

    def infer(self, prepared: Any) -> Mapping[str, Any]:
        """Compute one chunk.

        Returns:
            `actions` float64 `[H, action width]`; `policy_timing`, milliseconds by name; where the policy
            can continue chunks, `model_actions` float32 `[H, action_dim]` and `anchor_state` float64
            `[state width]`, and `rtc` beside a continuation. `notes` where the observation is odd.
        """
        ...

    def infer_batch(self, prepared: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        """Compute several chunks together, each what `infer` would give for it alone.

        Raises:
            Exception: where one of them cannot be computed; each is then computed alone.
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

    threading.Thread(target=prepare_ahead, name="preparer", daemon=True).start()
    between()
    free_since = time.perf_counter()
    while batch := next_batch():
        for message in _answers(policy, slots, batch, free_since):
            send(message)
        between()
        free_since = time.perf_counter()


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
    begun: queue.SimpleQueue[tuple[protocol.Infer, Pending, float] | None] = queue.SimpleQueue()

    def finish() -> None:
        while (item := begun.get()) is not None:
            request, pending, started = item
            send(_chunk_or_error(slots, request, pending.result, started))

    finisher = threading.Thread(target=finish, name="finisher", daemon=True)
    finisher.start()
    between()
    while (message := inbox.receive()) is not None:
        assert isinstance(message, protocol.Infer)
        if _begin(slots, message):
            started = time.perf_counter()
            try:
                begun.put((message, policy.start(slots.load_observation(message.observation)), started))
            except Exception as error:
                send(_failure(message, error))
        else:
            send(protocol.Skipped(message.request_id))
        between()
    begun.put(None)
    finisher.join()


def _begin(slots: protocol.SharedSlots, request: protocol.Infer) -> bool:
    """Begin a request, unless nobody wants its result any more: then False."""
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


def _answers(
    policy: Policy, slots: protocol.SharedSlots, batch: list[_Prepared], free_since: float
) -> Iterator[protocol.Message]:
    """The answers to a batch.

    Args:
        free_since: when the device had nothing to do any more; computing counts from there, and from the
            beginning of the preparation where that came later.
    """
    wanted: list[_Prepared] = []
    for one in batch:
        if not _begin(slots, one.request):
            yield protocol.Skipped(one.request.request_id)
        elif one.error is not None:
            yield _failure(one.request, one.error)
        else:
            wanted.append(one)
    started = max(free_since, batch[0].began)
    while wanted:
        size = max(size for size in policy.batch_sizes if size <= len(wanted))
        together, wanted = wanted[:size], wanted[size:]
        answers = _computed_together(policy, slots, together, started) if size > 1 else []
        for one in together if not answers else ():
            compute = functools.partial(policy.infer, one.value)
            yield _chunk_or_error(slots, one.request, compute, started)
            started = time.perf_counter()
        yield from answers
        started = time.perf_counter()


def _computed_together(
    policy: Policy, slots: protocol.SharedSlots, batch: list[_Prepared], started: float
) -> list[protocol.Message]:
    """The chunks of a batch; none where one of its requests fails, which must cost the others nothing."""
    try:
        results = policy.infer_batch([one.value for one in batch])
        seconds = time.perf_counter() - started
        return [
            _chunk(slots, one.request, result, started, seconds, len(batch))
            for one, result in zip(batch, results, strict=True)
        ]
    except Exception:
        logger.exception("a batch of %d failed; each of its requests is computed alone", len(batch))
        return []


def _chunk_or_error(
    slots: protocol.SharedSlots,
    request: protocol.Infer,
    compute: Callable[[], Mapping[str, Any]],
    started: float,
) -> protocol.Message:
    try:
        result = compute()
        return _chunk(slots, request, result, started, time.perf_counter() - started, 1)
    except Exception as error:
        return _failure(request, error)


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
