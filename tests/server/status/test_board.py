"""What the status page is told: nothing is kept while nobody looks, little while somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from tests.support.observations import observation_for
from vlad_configs.environments import ENVIRONMENTS
from vlad_server.status import board as board_module
from vlad_server.status.board import MAX_CHOSEN, MAX_REFUSALS, MAX_SAMPLES_TOLD, STAGES, StatusBoard
from vlad_server.status.frames import MAX_SIDE, jpeg_url, thumbnails
from vlad_server.status.snapshot import Snapshot, render

MESSAGE = {
    "actions": np.arange(14.0).reshape(2, 7),
    "policy_timing": {"vision_ms": 2.0, "infer_ms": 9.0},
    "server_timing": {"total_ms": 10.0, "queue_ms": 1.0, "decode_ms": 0.5},
}


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


OBSERVATION = observation_for("LIBERO")


def note(board: StatusBoard, robot: str) -> None:
    board.note_reply(robot, OBSERVATION, MESSAGE, encode_ms=0.25, send_ms=0.5)


def test_a_look_ends_by_itself_and_everything_is_forgotten() -> None:
    async def test() -> None:
        board = StatusBoard(ENVIRONMENTS["LIBERO"], watched_for_s=0.05)
        assert not board.is_watched
        board.watch("arm")
        assert board.is_watched
        note(board, "arm")
        board.note_refusal("arm", "invalid", "no")
        assert board.look_at("arm") is not None
        await asyncio.sleep(0.2)
        assert not board.is_watched
        assert (board.look_at("arm"), board.samples_after(0), board.refusals) == (None, ([], 0), [])

    run(test)


def test_frames_are_kept_of_chosen_robots_only_and_of_few_of_them() -> None:
    async def test() -> None:
        board = StatusBoard(ENVIRONMENTS["LIBERO"])
        names = [f"arm {number}" for number in range(MAX_CHOSEN + 2)]
        for name in names:
            board.watch(name)
            note(board, name)
        kept = [name for name in [*names, "other"] if board.look_at(name) is not None]
        assert kept == names[-MAX_CHOSEN:]
        board.close()

    run(test)


def test_stages_are_told_once_in_order_and_bounded() -> None:
    async def test() -> None:
        board = StatusBoard(ENVIRONMENTS["LIBERO"])
        board.watch(None)
        for _ in range(MAX_SAMPLES_TOLD + 30):
            note(board, "arm")
        told, left_out = board.samples_after(0)
        assert (len(told), left_out) == (MAX_SAMPLES_TOLD, 30)
        assert told[-1].number == board.last_number
        assert dict(zip(STAGES, told[0].stages_ms, strict=True)) == {
            **dict.fromkeys(STAGES),
            "total": 10.75,
            "queue": 1.0,
            "decode": 0.5,
            "vision": 2.0,
            "encode": 0.25,
            "send": 0.5,
        }
        assert board.samples_after(board.last_number) == ([], 0)
        board.close()

    run(test)


def test_frames_are_copied_a_few_times_a_second_however_fast_the_robot_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        board = StatusBoard(ENVIRONMENTS["LIBERO"])
        board.watch("arm")
        note(board, "arm")
        first = board.look_at("arm")
        note(board, "arm")
        assert board.look_at("arm") is first
        monkeypatch.setattr(board_module, "FRAMES_EVERY_S", 0.0)
        note(board, "arm")
        assert board.look_at("arm") is not first
        board.close()

    run(test)


def test_refusals_are_one_line_each_and_few() -> None:
    async def test() -> None:
        board = StatusBoard(ENVIRONMENTS["LIBERO"])
        board.watch(None)
        for number in range(MAX_REFUSALS + 5):
            board.note_refusal("arm", "invalid", f"{number} {'x' * 1000}\nTraceback")
        assert len(board.refusals) == MAX_REFUSALS
        assert board.refusals[-1].text.startswith(f"{MAX_REFUSALS + 4} xxx")
        assert len(board.refusals[-1].text) <= board_module.MAX_REFUSAL_CHARACTERS
        assert "Traceback" not in board.refusals[-1].text
        board.close()

    run(test)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_camera_of_every_robot_is_shown_small_and_copied(environment: str) -> None:
    observation = observation_for(environment)
    frames = thumbnails(observation, ENVIRONMENTS[environment])
    assert frames
    for frame in frames.values():
        assert frame.dtype == np.uint8
        assert frame.shape[2] == 3
        assert max(frame.shape[:2]) <= MAX_SIDE
        assert frame.base is None or frame.flags.owndata
        assert jpeg_url(frame).startswith("data:image/jpeg;base64,/9j/")


def test_large_and_float_images_become_small_bytes() -> None:
    observation = {
        "observation/image": np.full((1080, 1920, 3), 0.5, np.float64),
        "observation/wrist_image": np.full((3, 480, 640), 7, np.uint8),
    }
    observation["observation/image"][0, 0, 0] = np.nan
    frames = thumbnails(observation, ENVIRONMENTS["LIBERO"])
    assert frames["observation/image"].shape == (180, 320, 3)
    assert frames["observation/image"][0, 0].tolist() == [0, 127, 127]
    assert frames["observation/wrist_image"].shape == (240, 320, 3)


def test_what_json_cannot_say_is_left_out() -> None:
    facts = {"fidelity": {"cosine": float("nan"), "error": 0.123456789}, "odd": object, "sizes": (1, 2)}
    text = render(Snapshot(0.0, facts, [], 0, 0, [], None, None)).decode()
    assert '"cosine":null' in text
    assert '"error":0.12346' in text
    assert '"sizes":[1,2]' in text
