"""Processing against the vectors that openpi's own transforms computed."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.support.checkpoints import small_model
from tests.support.contracts import contract_for
from vlad_configs.contract import NormKind
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_engines.processing import robot_conventions
from vlad_engines.processing.images import resize_with_pad
from vlad_engines.processing.normalization import FeatureStats, Normalizer, NormStats
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import encode_prompt, pad_tokens, state_bins

FILE = pathlib.Path(__file__).parent / "serving" / "golden_vectors.json"
VECTORS: dict[str, Any] = json.loads(FILE.read_text("utf-8"))

# The rest describes pi0-FAST, which is not served, or the helper itself.
PROMPTS = [entry for entry in VECTORS["tokenizer_text"] if "prompt" in entry and entry.get("kind") != "fast"]
EXTREMES = {name: case for entry in VECTORS["tokenizer_text"] for name, case in entry.items()}


class RecordingTokenizer:
    """Answers with the ids it was given and keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        self.calls.append({"text": text, "add_bos": add_bos, "add_eos": False})
        return [2] * add_bos + [5] * len(text)


def _stats(entry: dict[str, Any]) -> FeatureStats:
    return FeatureStats(
        **{name: np.array(values, np.float64) for name, values in entry.items() if values is not None}
    )


@pytest.mark.parametrize("entry", PROMPTS)
def test_prompts_reach_the_tokenizer_as_openpis_do(entry: dict[str, Any]) -> None:
    tokenizer = RecordingTokenizer()
    template = "text" if entry["state"] is None else "task_state_action"
    ids = encode_prompt(tokenizer, template, entry["prompt"], np.array(entry["state"] or []))
    assert tokenizer.calls == entry["encode_calls"]
    if "dtypes" in entry:
        tokens, mask = pad_tokens(ids, entry["max_len"])
        assert [tokens.dtype.str, mask.dtype.str] == entry["dtypes"]
        assert len(tokens) == len(mask) == entry["max_len"]


def test_long_prompts_are_cut_and_short_ones_padded() -> None:
    cut = EXTREMES["truncation"]
    tokens, mask = pad_tokens(cut["fake_ids"], cut["max_len"])
    assert (tokens.tolist(), mask.tolist()) == (cut["tokens"], cut["mask"])
    padded = EXTREMES["padding"]
    tokens, mask = pad_tokens(padded["tokens"][: sum(padded["mask"])], padded["max_len"])
    assert (tokens.tolist(), mask.tolist()) == (padded["tokens"], padded["mask"])


def test_numbers_fall_into_openpis_bins() -> None:
    vectors = VECTORS["discretise"]
    assert state_bins(np.array(vectors["x"], np.float64)).tolist() == vectors["bin"]


@pytest.mark.parametrize(
    "name", [name for name in VECTORS["normalise"] if name.startswith(("norm_", "unnorm_"))]
)
def test_normalisation_gives_openpis_numbers_or_refuses_with_it(name: str) -> None:
    vectors = VECTORS["normalise"]
    direction, letter, x = name.split("_")
    kind: NormKind = "zscore" if letter == "z" else "quantile"
    normalizer = Normalizer.create(kind, "openpi", _stats(vectors["stats"]))
    assert normalizer is not None
    apply: Callable[[Any], Any] = normalizer.normalize if direction == "norm" else normalizer.unnormalize
    if isinstance(vectors[name], str):
        with pytest.raises(ValueError, match="statistics for 3"):
            apply(vectors[x])
        return
    np.testing.assert_allclose(apply(vectors[x]), vectors[name], rtol=1e-12, atol=1e-12)


def test_aloha_states_and_actions_change_convention_as_in_openpi() -> None:
    aloha = {name: np.array(values) for name, values in VECTORS["aloha"].items() if isinstance(values, list)}
    state = robot_conventions.state_to_model("aloha", aloha["state_in"])
    np.testing.assert_allclose(state, aloha["state_out"], rtol=0, atol=1e-9)
    actions = robot_conventions.actions_to_robot("aloha", aloha["actions_in"])
    np.testing.assert_allclose(actions, aloha["actions_out"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["gripper_to_angular", "gripper_from_angular"])
def test_grippers_change_scale_as_in_openpi(name: str) -> None:
    vectors = VECTORS["aloha"][name]
    scaled = getattr(robot_conventions, name)(np.array(vectors["x"], np.float64))
    np.testing.assert_allclose(scaled, vectors["y"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("entry", VECTORS["resize_with_pad"], ids=lambda entry: str(entry["in"]))
def test_images_resize_to_the_very_bytes(entry: dict[str, Any]) -> None:
    height, width = entry["in"]
    y, x, c = np.ogrid[:height, :width, :3]
    image = ((7 * x + 13 * y + 31 * c) % 256).astype(np.uint8)
    resized = resize_with_pad(image, *entry["out"])
    for place, pixel in entry["px"].items():
        row, column = map(int, place.split(","))
        assert resized[row, column].tolist() == pixel
    assert hashlib.sha256(resized.tobytes()).hexdigest() == entry["sha256"]


def _request(observation: dict[str, Any]) -> dict[str, Any]:
    def value(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {name: value(part) for name, part in entry.items()}
        if isinstance(entry, str) and entry.startswith("zeros uint8 "):
            return np.zeros(
                json.loads(entry.removeprefix("zeros uint8 ").translate({40: 91, 41: 93})), np.uint8
            )
        return entry if isinstance(entry, str) else np.array(entry, np.float64)

    request: dict[str, Any] = {name: value(entry) for name, entry in observation.items()}
    return request


@pytest.mark.parametrize("entry", VECTORS["end_to_end"], ids=lambda entry: f"{entry['env']}-{entry['model']}")
def test_whole_pipelines_give_openpis_inputs_and_actions(entry: dict[str, Any]) -> None:
    robot = ENVIRONMENTS[entry["env"]]
    config = OPENPI_CONFIGS[f"{entry['model']}_{entry['env'].lower()}"]
    kind: NormKind = "zscore" if entry["model"] == "pi0" else "quantile"
    output: npt.NDArray[np.float32] = np.array(entry["model_output"], np.float32)
    stats = {name: _stats(values) for name, values in entry["norm_stats"].items()}
    contract = contract_for(
        robot,
        model=small_model(config.family, action_dim=output.shape[1], action_horizon=output.shape[0]),
        prompt_template="task_state_action" if config.discrete_state_input else "text",
        norm_kind={"state": kind, "actions": kind},
        delta_mask=config.delta_mask,
    )
    tokenizer = RecordingTokenizer()
    processor = Processor(contract, NormStats(**stats), tokenizer)
    inputs = processor.prepare(_request(entry["obs"]))
    np.testing.assert_allclose(inputs.state, entry["model_state_float32"], rtol=0, atol=1e-6)
    assert [slot for slot, real in entry["image_mask"].items() if real] == list(inputs.cameras)
    if entry["tokenizer_state_arg"] is not None:
        bins = " ".join(map(str, state_bins(np.array(entry["tokenizer_state_arg"]))))
        assert f", State: {bins};\nAction: " in tokenizer.calls[0]["text"]
    actions = processor.finish(output, inputs)
    assert actions.dtype.str == entry["actions_dtype"]
    np.testing.assert_allclose(actions, entry["actions"], rtol=0, atol=1e-6)
