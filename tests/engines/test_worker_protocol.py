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
        protocol.Ready({"family": "pi05"}),
        protocol.StartFailed("no such checkpoint"),
        protocol.Chunk(7, [10, 7], 12.5, 0.03, {"infer_ms": 30.0}),
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


def test_chunks_travel_back_and_leave_the_other_slot_alone() -> None:
    slots = protocol.SharedSlots.create(2, 1000)
    random = np.random.default_rng(0)
    chunks = [random.standard_normal((50, 14)), random.standard_normal((10, 7))]
    shapes = [slots.store_chunk(slot, chunk) for slot, chunk in enumerate(chunks)]
    for slot, chunk in enumerate(chunks):
        loaded = slots.load_chunk(slot, shapes[slot])
        np.testing.assert_array_equal(loaded, chunk)
    slots.store_chunk(0, np.zeros((50, 14)))
    assert loaded.any()


def test_a_chunk_larger_than_its_room_is_refused() -> None:
    slots = protocol.SharedSlots.create(1, 1000)
    with pytest.raises(ValueError, match="action chunk"):
        slots.store_chunk(0, np.zeros(protocol.REPLY_BYTES // 8 + 1))
