"""Each mistake is found, and real observations of a robot are found well."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vlad_configs.environments import ENVIRONMENTS
from vlad_engines.fidelity.observations import recorded_observations, synthetic_observations
from vlad_server.doctor.examination import (
    BLUE_CAST_AFTER,
    FROZEN_AFTER,
    KINDS,
    History,
    examine,
    notes_of_policy,
)

REAL = pathlib.Path(__file__).parents[3] / "examples" / "data" / "libero_observations.npz"
LIBERO = ENVIRONMENTS["LIBERO"]


def _real() -> list[dict[str, Any]]:
    return list(recorded_observations(REAL, LIBERO))


def _found(observation: dict[str, Any], robot: str = "LIBERO") -> set[tuple[str, str]]:
    findings = examine(ENVIRONMENTS[robot], observation, History())
    return {(finding.kind, finding.key) for finding in findings}


def _changing(count: int, **fixed: Any) -> Iterator[dict[str, Any]]:
    """Observations in which everything changes but what is fixed."""
    random = np.random.default_rng(0)
    for _ in range(count):
        noise = [random.integers(40, 200, size=(224, 224, 3), dtype=np.uint8) for _ in range(2)]
        yield {
            "observation/image": noise[0],
            "observation/wrist_image": noise[1],
            "observation/state": random.random(8),
            "prompt": "go",
            **fixed,
        }


def _over_time(observations: Iterator[dict[str, Any]]) -> set[tuple[str, str]]:
    history = History()
    return {
        (finding.kind, finding.key)
        for observation in observations
        for finding in examine(LIBERO, observation, history)
    }


def test_real_observations_are_well() -> None:
    history = History()
    for observation in _real():
        assert examine(LIBERO, observation, history) == []


@pytest.mark.parametrize("robot", ENVIRONMENTS)
def test_drawn_observations_of_every_robot_are_well(robot: str) -> None:
    for observation in synthetic_observations(ENVIRONMENTS[robot]):
        assert _found(observation, robot) == set()


@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.parametrize("robot", ENVIRONMENTS)
def test_black_and_flat_pictures_are_found_in_every_layout(robot: str, as_float: bool) -> None:
    environment = ENVIRONMENTS[robot]
    camera = environment.cameras[0]
    for kind, level in (("image_black", 3), ("image_flat", 127)):
        observation = synthetic_observations(environment, 1)[0]
        holder = observation
        for part in camera.path[:-1]:
            holder = holder[part]
        image = np.full_like(holder[camera.path[-1]], level)
        holder[camera.path[-1]] = (image / 255).astype(np.float32) if as_float else image
        assert _found(observation, robot) == {(kind, camera.key)}


def test_floats_cast_without_scaling_are_found() -> None:
    observation = _real()[0]
    image = observation["observation/image"]
    observation["observation/image"] = (image / 255).round().astype(np.uint8)
    assert _found(observation) == {("image_levels", "observation/image")}


def test_images_enlarged_much_are_found() -> None:
    observation = _real()[0]
    observation["observation/wrist_image"] = observation["observation/wrist_image"][::4, ::4]
    assert _found(observation) == {("image_small", "observation/wrist_image")}


def test_swapped_channels_are_suspected_after_a_while() -> None:
    observations = _real()
    for observation in observations:
        observation["observation/image"] = observation["observation/image"][..., ::-1]
    kinds = _over_time(iter(observations))
    assert ("channels_swapped", "observation/image") in kinds
    assert all(key == "observation/image" for _, key in kinds)
    assert _over_time(iter(observations[: BLUE_CAST_AFTER - 1])) == set()


def test_one_picture_for_two_cameras_is_found() -> None:
    observation = _real()[0]
    observation["observation/wrist_image"] = observation["observation/image"].copy()
    assert _found(observation) == {("images_identical", "observation/wrist_image")}


def test_an_empty_state_and_prompt_are_found() -> None:
    observation = _real()[0]
    observation |= {"observation/state": np.zeros(8), "prompt": "  "}
    assert _found(observation) == {("state_zero", "observation/state"), ("prompt_empty", "prompt")}


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("observation/image", np.random.default_rng(1).integers(256, size=(224, 224, 3)), "image_frozen"),
        ("observation/state", np.ones(8), "state_frozen"),
    ],
)
def test_what_stands_still_while_the_rest_changes_is_found(key: str, value: Any, kind: str) -> None:
    fixed = {key: value.astype(np.uint8) if kind == "image_frozen" else value}
    assert _over_time(_changing(FROZEN_AFTER, **fixed)) == set()
    assert _over_time(_changing(FROZEN_AFTER + 1, **fixed)) == {(kind, key)}


def test_an_observation_sent_again_and_again_is_found_once() -> None:
    (same,) = _changing(1)
    assert _over_time(iter([same] * (FROZEN_AFTER + 1))) == {("observation_frozen", "")}


def test_what_the_policy_noticed_is_told_in_words() -> None:
    droid = ENVIRONMENTS["DROID"]
    cut, joint, gripper = notes_of_policy(droid, {"cut_tokens": 7, "state_outside": [[2, -9.5], [7, 4.0]]})
    assert (cut.kind, cut.key) == ("prompt_cut", "prompt")
    assert "7 tokens" in cut.text
    assert (joint.kind, joint.key) == ("state_out_of_range", "observation/joint_position[2]")
    assert "-9.5" in joint.text
    assert gripper.key == "observation/gripper_position[0]"
    assert {cut.kind, joint.kind} <= set(KINDS)
    assert notes_of_policy(droid, {}) == []


def test_every_kind_is_documented() -> None:
    page = (REAL.parents[2] / "docs" / "observation-doctor.md").read_text()
    for kind in KINDS:
        assert f"`{kind}`" in page
