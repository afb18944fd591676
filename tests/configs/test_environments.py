"""What each robot may send."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.observations import observation_for
from vlad_configs.environments import ENVIRONMENTS, prompt_text
from vlad_configs.errors import ObservationError


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_requests_of_the_examples_are_accepted(name: str) -> None:
    ENVIRONMENTS[name].check(observation_for(name), prompt_optional=False)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_required_key_is_missed_by_name(name: str) -> None:
    environment = ENVIRONMENTS[name]
    required = [vector.key for vector in environment.state] + ["prompt"]
    required += [camera.key for camera in environment.cameras if camera.required]
    for key in required:
        observation = observation_for(name)
        *parents, leaf = key.split("/") if key.startswith("images/") else [key]
        group: Any = observation
        for parent in parents:
            group = group[parent]
        del group[leaf]
        with pytest.raises(ObservationError) as caught:
            environment.check(observation, prompt_optional=False)
        assert caught.value.key == key
        assert caught.value.received.startswith("nothing")


def test_optional_cameras_may_be_left_out() -> None:
    observation = observation_for("ALOHA")
    observation["images"] = {"cam_high": observation["images"]["cam_high"]}
    ENVIRONMENTS["ALOHA"].check(observation, prompt_optional=False)


def test_unknown_cameras_are_refused_with_the_known_ones() -> None:
    observation = observation_for("ALOHA")
    observation["images"]["cam_back"] = observation["images"]["cam_high"]
    with pytest.raises(ObservationError, match=r"'images/cam_back': expected one of the cameras cam_high"):
        ENVIRONMENTS["ALOHA"].check(observation, prompt_optional=False)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((224, 224), np.uint8),
        np.zeros((224, 224, 4), np.uint8),
        np.zeros((0, 224, 3), np.uint8),
        np.zeros((5000, 4, 3), np.uint8),
        np.zeros((224, 224, 3), np.int32),
        np.zeros((224, 224, 3), bool),
        [[1, 2, 3]],
        None,
    ],
    ids=str,
)
def test_images_of_another_shape_or_dtype_are_refused(image: Any) -> None:
    observation = {**observation_for("LIBERO"), "observation/image": image}
    with pytest.raises(ObservationError, match="observation/image"):
        ENVIRONMENTS["LIBERO"].check(observation, prompt_optional=False)


@pytest.mark.parametrize(
    "image",
    [np.zeros((3, 64, 80), np.uint8), np.zeros((64, 80, 3), np.float32), np.zeros((1, 1, 3), np.float64)],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_both_channel_orders_and_floats_are_accepted(image: Any) -> None:
    observation = {**observation_for("LIBERO"), "observation/image": image}
    ENVIRONMENTS["LIBERO"].check(observation, prompt_optional=False)


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.array(0.5), np.array([0.5]), [0.5]], ids=repr)
def test_droid_gripper_may_be_a_bare_number(value: Any) -> None:
    observation = {**observation_for("DROID"), "observation/gripper_position": value}
    ENVIRONMENTS["DROID"].check(observation, prompt_optional=False)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(7),
        np.zeros((1, 8)),
        np.full(8, np.inf),
        np.array(["x"] * 8),
        "12345678",
        True,
        None,
        [[1], [2, 3]],
    ],
    ids=str,
)
def test_states_of_another_shape_or_kind_are_refused(value: Any) -> None:
    observation = {**observation_for("LIBERO"), "observation/state": value}
    with pytest.raises(ObservationError, match="observation/state"):
        ENVIRONMENTS["LIBERO"].check(observation, prompt_optional=False)


@pytest.mark.parametrize("prompt", ["fold", np.array("fold"), np.array(["fold"]), np.str_("fold")], ids=repr)
def test_prompts_may_be_numpy_strings(prompt: Any) -> None:
    assert prompt_text(prompt) == "fold"
    ENVIRONMENTS["LIBERO"].check({**observation_for("LIBERO"), "prompt": prompt}, prompt_optional=False)


def test_only_droid_takes_bytes_as_a_prompt() -> None:
    ENVIRONMENTS["DROID"].check({**observation_for("DROID"), "prompt": b"fold"}, prompt_optional=False)
    with pytest.raises(ObservationError, match="prompt"):
        ENVIRONMENTS["LIBERO"].check({**observation_for("LIBERO"), "prompt": b"fold"}, prompt_optional=False)


@pytest.mark.parametrize(
    "prompt", [5, None, ["fold"], b"\xff", np.array(["a", "b"]), "x" * 5000], ids=lambda p: str(p)[:9]
)
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ObservationError, match="prompt"):
        ENVIRONMENTS["DROID"].check({**observation_for("DROID"), "prompt": prompt}, prompt_optional=True)


def test_cameras_that_may_be_absent_are_told_apart_where_the_model_sees_them() -> None:
    images = {name: np.zeros((3, 8, 8), np.uint8) for name in ("cam_high", "cam_low", "cam_left_wrist")}
    aloha = ENVIRONMENTS["ALOHA"]
    assert aloha.optional_cameras({"images": images}) == ("images/cam_left_wrist",)
    del images["cam_left_wrist"]
    assert aloha.optional_cameras({"images": images}) == ()
    assert ENVIRONMENTS["LIBERO"].optional_cameras({}) == ()
