"""The worker's side: the next requests are prepared while the device computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from vlad_configs.errors import EngineError, ObservationError
from vlad_engines import worker_protocol as protocol
from vlad_engines.answering import answer

TIMEOUT_S = 20.0
BAD, USELESS = 6, 7
"""A request that fails together with its batch, and one that has a chunk of no use."""


class ScriptedDevice:
    """A policy whose device computes until it is told to stop."""

    batch_sizes = (1, 2)
    overlaps = False
    metadata: Mapping[str, Any] = {}

    def __init__(self) -> None:
        self.prepared: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.begun: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self.may_end = threading.Semaphore(0)
        self.may_reply = threading.Event()
        self.may_reply.set()
        self.prepared_by: list[str] = []

    def start(self, observation: Mapping[str, Any]) -> Any:
        raise AssertionError("this policy does not overlap")

    def prepare(self, observation: Mapping[str, Any]) -> int:
        number = int(observation["number"])
        self.prepared_by.append(threading.current_thread().name)
        self.prepared.put(number)
        if number < 0:
            raise ObservationError("number", "0 or more", str(number))
        return number

    def begin(self, prepared: Sequence[int]) -> ScriptedBatch:
        self.begun.put(list(prepared))
        return ScriptedBatch(self, prepared)


class ScriptedBatch:
    """Computes until the device is told to stop."""

    def __init__(self, device: ScriptedDevice, numbers: Sequence[int]) -> None:
        self._device, self._numbers = device, numbers

    def wait(self) -> None:
        assert self._device.may_end.acquire(timeout=TIMEOUT_S)
        if BAD in self._numbers:
            raise EngineError("one of them is bad")

    def reply(self, index: int) -> Mapping[str, Any]:
        assert self._device.may_reply.wait(TIMEOUT_S)
        if self._numbers[index] == USELESS:
            raise EngineError("not finite")
        return {"actions": np.full((1, 1), float(self._numbers[index])), "policy_timing": {}}


class Inbox:
    """Messages of a server that is a test."""

    def __init__(self) -> None:
        self._messages: list[protocol.Message | None] = []
        self._changed = threading.Condition()
        self.is_awaited = threading.Event()
        self._wakes_watcher = True
        self.watches_ended = 0

    def put(self, message: protocol.Message | None) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def receive(self) -> protocol.Message | None:
        with self._changed:
            if not self._messages:
                self.is_awaited.set()
            self._changed.wait_for(lambda: self._messages)
            self.is_awaited.clear()
            # The end stays, as that of a socket does.
            return None if self._messages[0] is None else self._messages.pop(0)

    def has_message(self) -> bool:
        with self._changed:
            return bool(self._messages)

    def watch(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._messages and self._wakes_watcher)
            self.watches_ended += 1

    def wake_watcher(self, is_on: bool) -> None:
        with self._changed:
            self._wakes_watcher = is_on
            self._changed.notify_all()


class Worker:
    """`answer` in a thread, and the server's ends of its two directions."""

    def __init__(self) -> None:
        self.device = ScriptedDevice()
        self.slots = protocol.SharedSlots.create(8, 4096)
        self.requests = Inbox()
        self._answers: queue.SimpleQueue[protocol.Message] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=answer, args=(self.device, self.slots, self.requests, self._answers.put), daemon=True
        )
        self._thread.start()

    def hand_over(self, *numbers: int, begin_by: float | None = None) -> None:
        for more, number in zip(reversed(range(len(numbers))), numbers, strict=True):
            slot = abs(number)
            outline = self.slots.store_observation(slot, {"number": number})
            self.slots.offer(slot)
            self.requests.put(protocol.Infer(abs(number), slot, outline, more, begin_by))

    def receive(self) -> protocol.Message:
        return self._answers.get(timeout=TIMEOUT_S)

    def close(self) -> None:
        self.requests.put(None)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def test_the_next_batch_is_prepared_while_the_device_computes(worker: Worker) -> None:
    worker.hand_over(1, 2)
    assert worker.device.begun.get(timeout=TIMEOUT_S) == [1, 2]
    worker.hand_over(3, 4)
    # The device has not been told to end: whatever is prepared now is prepared beside its computation.
    assert [worker.device.prepared.get(timeout=TIMEOUT_S) for _ in range(4)] == [1, 2, 3, 4]
    assert worker.device.begun.empty()
    assert not worker.slots.has_begun(3)
    worker.device.may_end.release(2)
    assert worker.device.begun.get(timeout=TIMEOUT_S) == [3, 4]
    chunks = [worker.receive() for _ in range(4)]
    for number, chunk in enumerate(chunks, start=1):
        assert isinstance(chunk, protocol.Chunk)
        assert (chunk.request_id, chunk.batch) == (number, 2)
        assert worker.slots.load_reply(chunk.arrays)["actions"] == number


def test_a_lone_request_is_prepared_by_the_thread_that_computes_it(worker: Worker) -> None:
    for number in (1, 2):
        assert worker.requests.is_awaited.wait(TIMEOUT_S)
        worker.hand_over(number)
        worker.device.begun.get(timeout=TIMEOUT_S)
        if number == 2:
            worker.hand_over(3)
            for _ in range(3):
                worker.device.prepared.get(timeout=TIMEOUT_S)
        worker.device.may_end.release()
        worker.receive()
    worker.device.may_end.release()
    worker.receive()
    assert [name == "preparer" for name in worker.device.prepared_by] == [False, False, True]
    # The preparing thread has not even woken up for the first two.
    assert worker.requests.watches_ended == 1


def test_the_time_of_a_computation_begins_when_the_one_before_ends(worker: Worker) -> None:
    worker.hand_over(1)
    worker.device.begun.get(timeout=TIMEOUT_S)
    worker.hand_over(2)
    for _ in range(2):
        worker.device.prepared.get(timeout=TIMEOUT_S)
    ended = time.perf_counter()
    worker.device.may_end.release(2)
    first, second = worker.receive(), worker.receive()
    assert isinstance(first, protocol.Chunk)
    assert isinstance(second, protocol.Chunk)
    assert first.started + first.seconds >= ended
    assert second.started >= first.started + first.seconds


def test_what_is_taken_back_or_late_after_its_preparation_is_not_computed(worker: Worker) -> None:
    worker.hand_over(1)
    worker.device.begun.get(timeout=TIMEOUT_S)
    worker.hand_over(2, 3)
    worker.hand_over(4, begin_by=time.perf_counter())
    for _ in range(4):
        worker.device.prepared.get(timeout=TIMEOUT_S)
    worker.slots.revoke(2)
    worker.device.may_end.release(2)
    answers = [worker.receive() for _ in range(4)]
    assert {(one.request_id, type(one).__name__) for one in answers} == {  # type: ignore[union-attr]
        (1, "Chunk"),
        (2, "Skipped"),
        (3, "Chunk"),
        (4, "Skipped"),
    }


def test_a_request_that_cannot_be_prepared_is_refused_and_leaves_the_batch(worker: Worker) -> None:
    worker.device.may_end.release(1)
    worker.hand_over(1, -2)
    refused, chunk = worker.receive(), worker.receive()
    assert isinstance(refused, protocol.Refused)
    assert (refused.request_id, refused.key) == (2, "number")
    assert isinstance(chunk, protocol.Chunk)
    assert (chunk.request_id, chunk.batch) == (1, 1)


def test_the_device_has_the_next_requests_before_the_last_ones_are_answered(worker: Worker) -> None:
    worker.device.may_reply.clear()
    worker.hand_over(1)
    worker.device.begun.get(timeout=TIMEOUT_S)
    worker.hand_over(2, 3)
    for _ in range(3):
        worker.device.prepared.get(timeout=TIMEOUT_S)
    worker.device.may_end.release()
    assert worker.device.begun.get(timeout=TIMEOUT_S) == [2, 3]
    worker.device.may_reply.set()
    worker.device.may_end.release()
    assert [worker.receive().request_id for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]


def test_more_requests_than_a_batch_takes_are_computed_one_batch_after_the_other(worker: Worker) -> None:
    worker.device.may_end.release(2)
    worker.hand_over(1, 2, 3)
    assert worker.device.begun.get(timeout=TIMEOUT_S) == [1, 2]
    assert worker.device.begun.get(timeout=TIMEOUT_S) == [3]
    assert [worker.receive().request_id for _ in range(3)] == [1, 2, 3]  # type: ignore[union-attr]


def test_a_batch_that_fails_is_computed_one_by_one(worker: Worker) -> None:
    worker.device.may_end.release(3)
    worker.hand_over(BAD, 1)
    failed, chunk = worker.receive(), worker.receive()
    assert isinstance(failed, protocol.Failed)
    assert (failed.request_id, failed.reason) == (BAD, "one of them is bad")
    assert isinstance(chunk, protocol.Chunk)
    assert (chunk.request_id, chunk.batch) == (1, 1)


def test_a_chunk_of_no_use_costs_the_others_of_its_batch_nothing(worker: Worker) -> None:
    worker.device.may_end.release()
    worker.hand_over(USELESS, 1)
    failed, chunk = worker.receive(), worker.receive()
    assert isinstance(failed, protocol.Failed)
    assert (failed.request_id, failed.reason) == (USELESS, "not finite")
    assert isinstance(chunk, protocol.Chunk)
    assert (chunk.request_id, chunk.batch) == (1, 2)
