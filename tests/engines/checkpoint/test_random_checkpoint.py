"""`random:` checkpoints: any size in memory, one network for everyone, never passed off as trained."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch

from tests.support.observations import observation_for
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint
from vlad_engines.checkpoint.random_checkpoint import is_random
from vlad_engines.checkpoint.random_weights import RandomWeights
from vlad_engines.model.openpi_names import TOKEN_EMBEDDING, expected_tensors
from vlad_engines.unified_policy import UnifiedPolicy


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("family", ["pi0", "pi05"])
def test_published_sizes_fit_every_robot_without_a_byte_on_disk(family: str, environment: str) -> None:
    opened = open_policy_checkpoint(f"random:{family}", environment=environment)
    contract = opened.contract
    assert contract.environment.name == environment
    assert contract.model.family == family
    assert contract.model.vlm.width == 2048
    assert sum(tensor.elements for tensor in opened.files.header.tensors.values()) > 3.2e9
    assert not opened.files.path.exists()
    assert opened.files.random_weights
    assert any("random" in warning for warning in opened.warnings)


@pytest.mark.parametrize(
    ("family", "environment", "horizon", "tokens"),
    [("pi05", "LIBERO", 10, 200), ("pi0", "LIBERO", 50, 48), ("pi05", "DROID", 15, 200)],
)
def test_horizon_and_prompt_length_follow_the_robots_configuration(
    family: str, environment: str, horizon: int, tokens: int
) -> None:
    model = open_policy_checkpoint(f"random:{family}", environment=environment).contract.model
    assert (model.action_horizon, model.max_token_len) == (horizon, tokens)


def test_a_policy_says_that_its_weights_are_random() -> None:
    policy = UnifiedPolicy("random:pi0_dummy", env="DROID", precision="fp32", num_denoising_steps=2)
    assert policy.metadata["weights"] == "random"
    assert policy.metadata["checkpoint"] == "random:pi0_dummy"
    actions = policy.infer(observation_for("DROID"), seed=1)["actions"]
    assert actions.shape == (10, 8)
    assert np.isfinite(actions).all()


def test_a_name_always_gives_the_same_tensor() -> None:
    model = open_policy_checkpoint("random:pi05_dummy").contract.model
    first, second = RandomWeights(model, "cpu"), RandomWeights(model, "cpu")
    other = RandomWeights(model, "cpu", seed=1)
    assert set(first) == set(expected_tensors(model))
    for name, shape in expected_tensors(model).items():
        tensor = first[name]
        assert tuple(tensor.shape) == shape
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, second[name])
    assert not torch.equal(first[TOKEN_EMBEDDING], other[TOKEN_EMBEDDING])
    layers = [name for name in first if name.endswith("self_attn.q_proj.weight")]
    assert len({first[name].float().sum().item() for name in layers}) == len(layers)


def test_weights_keep_activations_near_one() -> None:
    opened = open_policy_checkpoint("random:pi05_dummy")
    weights = open_weights(opened, "cpu")
    for name, tensor in weights.items():
        if tensor.ndim == 2 and "position" not in name:
            gain = tensor.float().std().item() * tensor.shape[1] ** 0.5
            assert 0.8 < gain < 1.7, name


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown random model 'pi1': expected one of pi05, pi0"):
        open_policy_checkpoint("random:pi1")
    with pytest.raises(ConfigError, match="config 'pi05_moon' not found"):
        open_policy_checkpoint("random:pi05", config="pi05_moon")
    with pytest.raises(ConfigError, match="unknown environment 'MARS'"):
        open_policy_checkpoint("random:pi05", environment="MARS")


def test_a_directory_of_any_name_is_no_random_checkpoint(tmp_path: pathlib.Path) -> None:
    assert not is_random(tmp_path / "random")
    assert not is_random("demo")
    assert is_random("random:pi05")
