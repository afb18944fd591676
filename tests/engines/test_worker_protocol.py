"""What server and worker say to each other."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tests.support.libero import libero_observation
from vlad_engines import worker_protocol as protocol


@pytest.mark.parametrize(
    "message",
    [
        protocol.Configure({"checkpoint_dir": "demo", "num_denoising_steps": None}),
        protocol.Infer(7, 1, b"outline"),
        protocol.Progress("loading", 0.25),
        protocol.Infer(7, 1, b"outline", 2, 12.5, True),
        protocol.Ready({"family": "pi05"}, [1, 2, 4], overlaps=True),
        protocol.StartFailed("no such checkpoint"),
        protocol.Chunk(7, b"outline", 12.5, 0.03, 4, {"infer_ms": 30.0}, {"mode": "off"}),
        protocol.Skipped(7),
        protocol.Refused(7, "prompt", "a text", "int"),
        protocol.Failed(7, "out of memory", "Traceback"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_survive_the_packet(message: protocol.Message) -> None:
    assert protocol.unpack_message(protocol.pack_message(message)) == message


def test_a_message_too_long_for_a_packet_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        protocol.pack_message(protocol.Failed(1, "x", "y" * protocol.MAX_PACKET_BYTES))


def test_observations_travel_through_shared_memory_unchanged() -> None:
    slots = protocol.SharedSlots.create(2, 1 << 20)
    worker = protocol.SharedSlots(os.dup(slots.fd), 2, 1 << 20)
    observations = [libero_observation(seed) for seed in range(2)]
    observations[1]["images"] = {"cam_high": np.ones((3, 5, 7), ">f4"), "empty": np.zeros((0, 3))}
    observations[1]["vlad/seed"] = 5
    observations[1]["prompt"] = np.array("a text array")
    outlines = [slots.store_observation(slot, observation) for slot, observation in enumerate(observations)]
    for observation, outline in zip(observations, outlines, strict=True):
        loaded = worker.load_observation(outline)
        np.testing.assert_equal(loaded, observation)
        assert not loaded["observation/image"].flags.writeable


def test_an_observation_larger_than_a_slot_is_refused() -> None:
    slots = protocol.SharedSlots.create(2, 1000)
    with pytest.raises(ValueError, match="observation of more than"):
        slots.store_observation(0, {"image": np.zeros(3 << 20, np.uint8)})


def test_an_observation_with_too_much_beside_its_arrays_is_refused() -> None:
    slots = protocol.SharedSlots.create(2, 1000)
    with pytest.raises(ValueError, match="beside its arrays"):
        slots.store_observation(0, {"prompt": "x" * protocol.MAX_PACKET_BYTES})


def test_the_notes_about_a_request_are_its_own_and_end_with_it() -> None:
    server = protocol.SharedSlots.create(2, 1000)
    worker = protocol.SharedSlots(os.dup(server.fd), 2, 1000)
    for slot in range(2):
        server.offer(slot)
    worker.begin(0)
    server.revoke(1)
    assert [server.has_begun(slot) for slot in range(2)] == [True, False]
    assert [worker.is_revoked(slot) for slot in range(2)] == [False, True]
    for slot in range(2):
        server.offer(slot)
    assert not any(server.has_begun(slot) or worker.is_revoked(slot) for slot in range(2))


def test_replies_travel_back_and_leave_the_other_slot_alone() -> None:
    slots = protocol.SharedSlots.create(2, 1000)
    random = np.random.default_rng(0)
    replies = [
        {"actions": random.standard_normal((50, 14)), "model_actions": np.ones((50, 32), np.float32)},
        {"actions": random.standard_normal((10, 7))},
    ]
    outlines = [slots.store_reply(slot, reply) for slot, reply in enumerate(replies)]
    loaded = [slots.load_reply(outline) for outline in outlines]
    np.testing.assert_equal(loaded, replies)
    slots.store_reply(0, {"actions": np.zeros((50, 14))})
    assert loaded[0]["actions"].any()


def test_a_reply_larger_than_its_room_is_refused() -> None:
    slots = protocol.SharedSlots.create(1, 1000)
    with pytest.raises(ValueError, match="reply of more than"):
        slots.store_reply(0, {"actions": np.zeros(protocol.REPLY_BYTES // 8 + 1)})


def test_memory_of_a_large_request_goes_back_and_its_slot_stays_usable() -> None:
    slots = protocol.SharedSlots.create(2, 32 << 20)
    image = np.ones(16 << 20, np.uint8)
    slots.store_observation(0, {"image": image})
    taken = os.fstat(slots.fd).st_blocks
    slots.release(0)
    assert os.fstat(slots.fd).st_blocks * 512 < taken * 512 - (15 << 20)
    outline = slots.store_observation(0, {"image": image})
    np.testing.assert_array_equal(slots.load_observation(outline)["image"], image)


def test_shared_memory_goes_with_the_last_array_that_views_it() -> None:
    slots = protocol.SharedSlots.create(1, 1 << 16)
    observation = {"state": np.arange(8.0)}
    viewed = slots.load_observation(slots.store_observation(0, observation))
    slots.close()
    np.testing.assert_array_equal(viewed["state"], observation["state"])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(slots.fd)
