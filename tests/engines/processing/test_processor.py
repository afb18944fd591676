from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.support.contracts import NO_STATS, CharacterTokenizer, contract_for, spread_stats
from tests.support.libero import libero_observation
from tests.support.observations import observation_for
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError, EngineError, ObservationError
from vlad_engines.processing.normalization import FeatureStats, NormStats
from vlad_engines.processing.processor import Processor

LIBERO = ENVIRONMENTS["LIBERO"]
QUANTILE = {"state": "quantile", "actions": "quantile"}


class Prompts:
    """Keeps the prompts it is given, as one token each."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        self.texts.append(text)
        return [7]


def processor(environment: str = "LIBERO", stats: NormStats = NO_STATS, **changes: Any) -> Processor:
    return Processor(contract_for(ENVIRONMENTS[environment], **changes), stats, CharacterTokenizer())


def arrays_of(tree: Mapping[str, Any]) -> list[np.ndarray[Any, Any]]:
    found = []
    for value in tree.values():
        found += arrays_of(value) if isinstance(value, Mapping) else [value]
    return [value for value in found if isinstance(value, np.ndarray)]


@pytest.mark.parametrize("environment", sorted(ENVIRONMENTS))
def test_read_only_requests_are_served_and_left_alone(environment: str) -> None:
    observation = observation_for(environment)
    for array in arrays_of(observation):
        array.flags.writeable = False
    before = [array.copy() for array in arrays_of(observation)]
    made = processor(environment)
    inputs = made.prepare(observation)
    made.finish(np.ones((6, 32), np.float32), inputs)
    for array, copy in zip(arrays_of(observation), before, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert not np.shares_memory(array, inputs.images)


def test_only_cameras_that_are_there_reach_the_model() -> None:
    observation = observation_for("ALOHA")
    del observation["images"]["cam_left_wrist"], observation["images"]["cam_low"]
    inputs = processor("ALOHA").prepare(observation)
    assert inputs.cameras == ("base_0_rgb", "right_wrist_0_rgb")
    assert inputs.images.shape == (2, 224, 224, 3)
    expected = np.moveaxis(observation["images"]["cam_right_wrist"], 0, -1)
    np.testing.assert_array_equal(inputs.images[1], expected)


@pytest.mark.parametrize(
    ("given", "server", "contract", "used"),
    [
        ("request", "server", "contract", "request"),
        (None, "server", "contract", "server"),
        (None, None, "contract", "contract"),
        (None, "", "contract", ""),
    ],
)
def test_the_nearest_prompt_wins(given: str | None, server: str | None, contract: str, used: str) -> None:
    prompts = Prompts()
    made = Processor(contract_for(LIBERO, default_prompt=contract), NO_STATS, prompts, server)
    observation = libero_observation()
    if given is None:
        del observation["prompt"]
    else:
        observation["prompt"] = given
    made.prepare(observation)
    assert prompts.texts[0] == used


def test_a_request_without_any_prompt_is_refused() -> None:
    observation = libero_observation()
    del observation["prompt"]
    with pytest.raises(ObservationError, match=r"'prompt'.*no default prompt"):
        processor().prepare(observation)


def test_text_that_encodes_no_character_is_refused() -> None:
    observation = {**libero_observation(), "prompt": np.array("\ud800")}
    with pytest.raises(ObservationError, match=r"'prompt'.*surrogates"):
        processor().prepare(observation)


@pytest.mark.parametrize("resize", ["pil_antialiased", "bilinear"])
def test_a_float_image_in_0_to_255_is_refused_by_its_key(resize: str) -> None:
    observation = libero_observation()
    observation["observation/wrist_image"] = observation["observation/wrist_image"].astype(np.float32)
    with pytest.raises(ObservationError, match=r"'observation/wrist_image'.*float values from 0 to 255"):
        processor(image_resize=resize).prepare(observation)


def test_a_state_beyond_float32_is_refused() -> None:
    observation = libero_observation()
    observation["observation/state"][3] = 1e300
    with pytest.raises(ObservationError, match=r"'observation/state'.*beyond float32"):
        processor().prepare(observation)


def test_bilinear_contracts_get_floats_from_minus_one_to_one() -> None:
    observation = libero_observation()
    observation["observation/image"] = np.full((100, 200, 3), 255, np.uint8)
    images = processor(image_resize="bilinear").prepare(observation).images
    assert images.dtype == np.float32
    assert images[0, 112, 112].tolist() == [1.0, 1.0, 1.0]
    assert images[0, 0, 0].tolist() == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_actions_never_leave(bad: float) -> None:
    made = processor()
    chunk = np.zeros((6, 32), np.float32)
    chunk[2, 31] = bad  # even in a column that the robot never sees
    with pytest.raises(EngineError, match="1 non-finite of 192"):
        made.finish(chunk, made.prepare(libero_observation()))


def test_the_model_gets_the_normalised_state_and_differences_the_raw_one() -> None:
    stats = NormStats(spread_stats(8, 1), spread_stats(7, 2))
    made = processor(stats=stats, norm_kind=QUANTILE, delta_mask=(True,) * 6 + (False,))
    observation = libero_observation()
    inputs = made.prepare(observation)
    np.testing.assert_array_equal(inputs.robot_state, observation["observation/state"])
    assert not np.allclose(inputs.state[:8], inputs.robot_state)
    assert (inputs.state[8:] == 0).all()
    chunk = np.zeros((6, 32), np.float32)
    mean = (stats.actions.q01 + stats.actions.q99) / 2  # type: ignore[operator]
    expected = mean + np.append(observation["observation/state"][:6], 0.0)
    np.testing.assert_allclose(made.finish(chunk, inputs)[0], expected, atol=2e-6)


@pytest.mark.parametrize(("dims", "numbers"), [(8, 8), (32, 32)])
def test_the_prompt_holds_the_state_at_its_own_width(dims: int, numbers: int) -> None:
    prompts = Prompts()
    contract = contract_for(LIBERO, prompt_template="task_state_action", prompt_state_dims=dims)
    observation = libero_observation()
    observation["observation/state"] = np.full(8, -1.0)
    Processor(contract, NO_STATS, prompts).prepare(observation)
    bins = prompts.texts[0].partition("State: ")[2].partition(";")[0].split()
    assert bins == ["0"] * 8 + ["128"] * (numbers - 8)


def test_statistics_of_another_robot_are_refused() -> None:
    with pytest.raises(CheckpointError, match="'state' have 14 numbers; LIBERO has 8"):
        processor(stats=NormStats(spread_stats(14), spread_stats(7)), norm_kind=QUANTILE)
    with pytest.raises(CheckpointError, match="'actions' have 8 numbers; LIBERO has 7"):
        processor(stats=NormStats(spread_stats(8), spread_stats(8)), norm_kind=QUANTILE)


def test_statistics_padded_to_the_model_are_accepted() -> None:
    def padded(stats: FeatureStats) -> FeatureStats:
        values = {name: getattr(stats, name) for name in stats.present}
        return FeatureStats(**{name: np.append(v, np.zeros(32 - len(v))) for name, v in values.items()})

    exact = NormStats(spread_stats(8, 1), spread_stats(7, 2))
    wide = NormStats(padded(exact.state), padded(exact.actions))
    chunk = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    results = []
    for stats in (exact, wide):
        made = processor(stats=stats, norm_kind=QUANTILE)
        inputs = made.prepare(libero_observation())
        results.append((inputs.state, made.finish(chunk, inputs)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize(
    "module",
    [
        *("processing.normalization", "processing.images", "processing.robot_conventions"),
        *("processing.tokenizer", "processing.processor", "processing.model_inputs", "processing.noise"),
        *("processing.guidance", "processing.continuation", "model.euler"),
        *("pending_chunk", "overlap.pipeline", "backends.capabilities"),
    ],
)
def test_all_but_the_network_works_without_torch(module: str) -> None:
    program = (
        f"import sys, vlad_engines.{module}\n"
        "sys.exit(' '.join({'torch', 'safetensors', 'transformers'} & set(sys.modules)) or 0)"
    )
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
