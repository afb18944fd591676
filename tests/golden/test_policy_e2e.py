"""Whole deployments, request to robot actions, against openpi's `Policy.infer`."""

from __future__ import annotations

import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests.support.golden import Array
from tests.support.golden_deployments import Case, deployment_arrays, deployment_request, write_deployment
from tests.support.golden_lists import listed
from vlad_configs.models import CAMERA_SLOTS
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_engines.backends.base import Precision
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.normalization import Normalizer
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import SentencePieceTokenizer
from vlad_engines.unified_policy import UnifiedPolicy

BF16_MAX, BF16_MEAN = 0.12, 0.02
"""Bounds on normalised actions in bfloat16 against float32."""

each_case = pytest.mark.parametrize("case", listed("policy_e2e.json"))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder for the checkpoints, each written once."""
    return tmp_path_factory.mktemp("deployments")


def _processor(directory: pathlib.Path, case: Case) -> Processor:
    checkpoint = open_policy_checkpoint(directory, config=case[1]["official_config"])
    tokenizer = SentencePieceTokenizer(checkpoint.tokenizer, checkpoint.contract.model.vocab_size)
    return Processor(checkpoint.contract, checkpoint.norm_stats, tokenizer)


def _policy(directory: pathlib.Path, case: Case, precision: Precision) -> UnifiedPolicy:
    config = case[1]["official_config"]
    return UnifiedPolicy(
        str(directory),
        config=config,
        env=OPENPI_CONFIGS[config].environment,
        precision=precision,
        device="cpu",
    )


@each_case
def test_the_contract_is_that_of_the_official_configuration(case: Case, checkpoints: pathlib.Path) -> None:
    entry = case[1]
    checkpoint = open_policy_checkpoint(write_deployment(checkpoints, case), config=entry["official_config"])
    contract = checkpoint.contract
    assert (contract.prompt_template == "task_state_action") == entry["discrete_state_input"]
    kind = "quantile" if entry["use_quantile_norm"] else "zscore"
    assert contract.norm_kind == {"state": kind, "actions": kind}
    assert (contract.delta_mask is not None) == ("AbsoluteActions" in entry["output_transforms"])
    assert contract.metadata == (entry["policy_metadata"] or {})
    assert contract.num_denoising_steps == 10


@each_case
def test_the_model_sees_what_openpi_feeds_it(case: Case, checkpoints: pathlib.Path) -> None:
    golden = deployment_arrays(case)
    inputs: ModelInputs = _processor(write_deployment(checkpoints, case), case).prepare(
        deployment_request(case)
    )
    np.testing.assert_array_equal(inputs.tokens, golden["model_tokens"][0])
    np.testing.assert_array_equal(inputs.token_mask, golden["model_token_mask"][0])
    np.testing.assert_allclose(inputs.state, golden["model_state"][0], rtol=0, atol=1e-6)
    present = [slot for slot in CAMERA_SLOTS if golden[f"model_image_mask|{slot}"][0]]
    assert list(inputs.cameras) == present
    for slot, image in zip(present, inputs.images, strict=True):
        assert image.dtype == np.uint8
        assert zlib.crc32(image.tobytes()) == int(golden[f"model_image_crc|{slot}"][0]), slot


@each_case
def test_openpis_raw_chunk_becomes_openpis_actions(case: Case, checkpoints: pathlib.Path) -> None:
    golden = deployment_arrays(case)
    processor = _processor(write_deployment(checkpoints, case), case)
    actions = processor.finish(golden["model_raw_actions"][0], processor.prepare(deployment_request(case)))
    np.testing.assert_allclose(actions, golden["actions"], rtol=0, atol=1e-6)


@each_case
def test_the_policy_answers_as_openpi_does(case: Case, checkpoints: pathlib.Path) -> None:
    golden, entry = deployment_arrays(case), case[1]
    policy = _policy(write_deployment(checkpoints, case), case, "fp32")
    for noise in (golden["noise"], golden["noise"][None]):
        reply = policy.infer(deployment_request(case), noise=noise)
        assert set(entry["result_keys"]) <= set(reply)
        assert reply["actions"].dtype == np.dtype(entry["actions_dtype"])
        assert list(reply["actions"].shape) == entry["actions_shape"]
        np.testing.assert_allclose(reply["actions"], golden["actions"], rtol=0, atol=1e-4)
    policy.close()


@each_case
def test_bfloat16_stays_within_its_bounds(case: Case, checkpoints: pathlib.Path) -> None:
    golden = deployment_arrays(case)
    directory = write_deployment(checkpoints, case)
    policy = _policy(directory, case, "bf16")
    reply = policy.infer(deployment_request(case), noise=golden["noise"])
    error = np.abs(reply["actions"] - golden["actions"]) / _robot_units(directory, case)
    assert error.max() <= BF16_MAX
    assert error.mean() <= BF16_MEAN
    policy.close()


def _robot_units(directory: pathlib.Path, case: Case) -> Array:
    """What one unit of a normalised action is worth, per column of the reply."""
    checkpoint = open_policy_checkpoint(directory, config=case[1]["official_config"])
    contract = checkpoint.contract
    normalizer = Normalizer.create(contract.norm_kind["actions"], "openpi", checkpoint.norm_stats.actions)
    assert normalizer is not None
    width = contract.environment.action_width
    units: Array = normalizer.unnormalize(np.ones(width)) - normalizer.unnormalize(np.zeros(width))
    return np.abs(units)


@each_case
def test_a_request_leaves_no_trace(case: Case, checkpoints: pathlib.Path) -> None:
    """Arrays arrive read-only from shared memory, and nothing of one request reaches the next."""

    def freeze(tree: Mapping[str, Any]) -> None:
        for value in tree.values():
            if isinstance(value, Mapping):
                freeze(value)
            elif isinstance(value, np.ndarray):
                value.flags.writeable = False

    request = deployment_request(case)
    freeze(request)
    processor = _processor(write_deployment(checkpoints, case), case)
    first, second = processor.prepare(request), processor.prepare(request)
    np.testing.assert_array_equal(first.state, second.state)
    np.testing.assert_array_equal(first.images, second.images)
    assert not np.shares_memory(first.images, second.images)
