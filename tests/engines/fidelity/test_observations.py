"""The fixed observations: valid for every robot, the same every time, and not all alike."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.support.fidelity import checkpoint
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.fidelity.observations import (
    fitting_observations,
    make_cases,
    recorded_observations,
    synthetic_observations,
)
from vlad_engines.fidelity.verify import make_processor

RECORDED = pathlib.Path(__file__).parents[3] / "examples" / "data" / "libero_observations.npz"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_robot_has_valid_observations(environment: str) -> None:
    opened = checkpoint("pi0", environment)
    observations = synthetic_observations(opened.contract.environment)
    cases = make_cases(make_processor(opened), opened.contract.model, observations)
    lengths = {int(case.inputs.token_mask.sum()) for case in cases}
    assert len(lengths) == len(cases), "the prompts should have different lengths"
    assert len({case.inputs.images.tobytes() for case in cases}) == len(cases)
    assert all(np.abs(case.inputs.state).max() < 3.0 for case in cases)
    assert len({case.noise.tobytes() for case in cases}) == len(cases)


def test_prompts_are_as_long_as_a_small_model_takes() -> None:
    opened = open_policy_checkpoint("demo", environment="LIBERO")
    processor, model = make_processor(opened), opened.contract.model
    drawn = synthetic_observations(opened.contract.environment)
    assert max(map(processor.count_tokens, drawn)) > model.max_token_len
    fitting = fitting_observations(processor, opened.contract)
    lengths = list(map(processor.count_tokens, fitting))
    assert max(lengths) <= model.max_token_len
    assert len(set(lengths)) == len(lengths)
    assert [case.inputs.notes for case in make_cases(processor, model, fitting)] == [{}] * len(fitting)
    assert all(short["prompt"] in long["prompt"] for short, long in zip(fitting, drawn, strict=True))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_they_are_the_same_every_time(environment: str) -> None:
    robot = ENVIRONMENTS[environment]
    np.testing.assert_equal(synthetic_observations(robot), synthetic_observations(robot))


def test_cameras_that_a_robot_may_leave_out_are_left_out_sometimes() -> None:
    opened = checkpoint("pi0", "ALOHA")
    observations = synthetic_observations(opened.contract.environment, 2)
    cases = make_cases(make_processor(opened), opened.contract.model, observations)
    assert [len(case.inputs.cameras) for case in cases] == [3, 1]


def test_pictures_have_structure() -> None:
    picture = synthetic_observations(ENVIRONMENTS["LIBERO"], 1)[0]["observation/image"].astype(float)
    neighbours = np.abs(np.diff(picture, axis=0)).mean()
    strangers = np.abs(picture - np.roll(picture, 112, axis=0)).mean()
    assert neighbours < 0.4 * strangers


def test_recorded_observations_are_read_row_by_row() -> None:
    observations = recorded_observations(RECORDED, ENVIRONMENTS["LIBERO"])
    with np.load(RECORDED) as file:
        assert len(observations) == len(file["state"])
        np.testing.assert_array_equal(observations[5]["observation/wrist_image"], file["wrist_image"][5])
        assert observations[5]["prompt"] == str(file["prompt"][5])


def test_nested_keys_are_joined_with_a_slash(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "aloha.npz"
    arrays = {"images/cam_high": np.zeros((2, 3, 8, 8), np.uint8), "state": np.zeros((2, 14))}
    np.savez(path, prompt=np.array(["a", "b"]), **arrays)
    observations = recorded_observations(path, ENVIRONMENTS["ALOHA"])
    assert set(observations[1]["images"]) == {"cam_high"}
    assert observations[1]["prompt"] == "b"


def test_a_file_for_another_robot_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match="observation/joint_position"):
        recorded_observations(RECORDED, ENVIRONMENTS["DROID"])
    (tmp_path / "text.npz").write_text("not numbers")
    with pytest.raises(ConfigError, match="not a readable npz"):
        recorded_observations(tmp_path / "text.npz", ENVIRONMENTS["LIBERO"])


def test_rows_must_agree(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "uneven.npz"
    images = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(path, image=images, wrist_image=images, state=np.zeros((3, 8)), prompt=np.array(["a", "b"]))
    with pytest.raises(ConfigError, match=r"\[2, 3\]"):
        recorded_observations(path, ENVIRONMENTS["LIBERO"])
