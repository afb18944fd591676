"""What each robot sends and receives, against openpi's environment policies.

The recordings also hold training-side transforms (actions among the inputs, `delta_*`), which a server
never runs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.support.contracts import NO_STATS, CharacterTokenizer, contract_for
from tests.support.golden import FOLDER, Array, load_arrays
from vlad_configs.environments import ENVIRONMENTS, Environment
from vlad_configs.models import CAMERA_SLOTS
from vlad_engines.processing.images import resize_with_pad
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.processor import Processor

FILE = "env_transforms.npz"


@functools.cache
def _cases(pattern: str) -> list[Any]:
    """Names of the recorded cases that match; one skipped parameter where the folder has no file."""
    if not (FOLDER / FILE).is_file():
        return [pytest.param("", marks=pytest.mark.skip(reason=f"{FOLDER} holds no {FILE}"))]
    names = {key.partition("|")[0] for key in load_arrays(FILE)}
    found = sorted(name for name in names if re.fullmatch(pattern, name))
    assert found, f"no case in {FOLDER / FILE} matches {pattern}"
    return found


def _tree(prefix: str) -> dict[str, Any]:
    """The arrays and strings under a prefix, nested at `|`, with `~` read as `/`."""
    strings = json.loads((FOLDER / "env_transforms.json").read_text("utf-8"))
    tree: dict[str, Any] = {}
    for key, value in {**load_arrays(FILE), **strings}.items():
        if key.startswith(prefix + "|"):
            *parents, leaf = key.removeprefix(prefix + "|").replace("~", "/").split("|")
            group = tree
            for parent in parents:
                group = group.setdefault(parent, {})
            group[leaf] = value
    return tree


def _environment(case: str, fits: Any) -> Environment:
    environment = next(robot for robot in ENVIRONMENTS.values() if fits(robot))
    return dataclasses.replace(environment, conversion="none") if "adapt0" in case else environment


def _processor(environment: Environment, **changes: Any) -> Processor:
    contract = contract_for(environment, **changes)
    return Processor(contract, NO_STATS, CharacterTokenizer(), default_prompt="for requests without one")


def _inputs(robot_state: Array) -> ModelInputs:
    empty = np.zeros((0,), np.int64)
    return ModelInputs((), np.zeros((0, 1, 1, 3), np.uint8), empty, empty > 0, robot_state, robot_state)


def _input_cases() -> list[Any]:
    return _cases(r"(?!absolute|delta|mask|pad).*(?<!_out)(?<!_out_adapt0)(?<!_out_adapt1)")


@pytest.mark.parametrize("case", _input_cases())
def test_requests_become_openpis_cameras_and_state(case: str) -> None:
    request, expected = _tree(f"{case}|in"), _tree(f"{case}|out")
    environment = _environment(case, lambda robot: robot.request_keys <= {"prompt", *request})
    inputs = _processor(environment).prepare(request)
    np.testing.assert_allclose(inputs.robot_state, expected["state"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(inputs.state[: environment.state_width], expected["state"], rtol=0, atol=1e-6)
    present = [slot for slot in CAMERA_SLOTS if expected["image_mask"][slot]]
    assert list(inputs.cameras) == present
    for slot, image in zip(present, inputs.images, strict=True):
        np.testing.assert_array_equal(image, resize_with_pad(expected["image"][slot], 224, 224), err_msg=slot)


@pytest.mark.parametrize("case", _cases(r".*_out(_adapt\d)?"))
def test_chunks_become_openpis_robot_actions(case: str) -> None:
    chunk, expected = _tree(f"{case}|in")["actions"], _tree(f"{case}|out")["actions"]
    environment = _environment(case, lambda robot: robot.action_width == expected.shape[-1])
    actions = _processor(environment).finish(chunk, _inputs(np.zeros(environment.state_width)))
    assert actions.dtype == np.float64
    np.testing.assert_allclose(actions, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", _cases(r"absolute_.*"))
def test_differences_are_added_to_the_state_as_openpi_does(case: str) -> None:
    arrays: Mapping[str, Array] = load_arrays(FILE)
    mask = arrays[f"mask_{case.partition('_')[2]}"]
    request, expected = _tree(f"{case}|in"), _tree(f"{case}|out")["actions"]
    robot = next(robot for robot in ENVIRONMENTS.values() if robot.action_width == len(mask))
    processor = _processor(
        dataclasses.replace(robot, conversion="none"), delta_mask=tuple(bool(relative) for relative in mask)
    )
    actions = processor.finish(request["actions"], _inputs(request["state"]))
    np.testing.assert_allclose(actions, expected[:, : robot.action_width], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", _cases(r"pad"))
def test_states_are_padded_as_openpi_does(case: str) -> None:
    state, expected = _tree(f"{case}|in")["state"], _tree(f"{case}|out")["state"]
    robot = next(robot for robot in ENVIRONMENTS.values() if robot.state_width == len(state))
    environment = dataclasses.replace(robot, conversion="none")
    request = {
        "state": state,
        "images": {"cam_high": np.zeros((3, 8, 8), np.uint8)},
        "prompt": "",
    }
    np.testing.assert_array_equal(_processor(environment).prepare(request).state, expected)
