"""Configurations refuse what cannot work."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError
from vlad_configs.models import GEMMA_VARIANTS, GemmaConfig, ModelConfig, SiglipConfig
from vlad_configs.openpi_configs import OPENPI_CONFIGS, openpi_config
from vlad_configs.serving import ServeConfig


def test_a_model_configuration_survives_json() -> None:
    config = ModelConfig(
        "pi05", vlm=GEMMA_VARIANTS["dummy"], expert=GEMMA_VARIANTS["dummy"], action_horizon=7
    )
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    "change", [{"family": "pi7"}, {"action_horizon": 0}, {"expert": GEMMA_VARIANTS["dummy"]}]
)
def test_contradictory_models_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(ModelConfig("pi0"), **change)


def test_unknown_and_missing_model_keys_are_refused() -> None:
    data = ModelConfig("pi0").to_json()
    with pytest.raises(ConfigError, match="unreadable"):
        ModelConfig.from_json({**data, "colour": "red"})
    del data["siglip"]
    with pytest.raises(ConfigError, match="siglip"):
        ModelConfig.from_json(data)


def test_impossible_vision_towers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        SiglipConfig(width=100, depth=1, mlp_dim=8, num_heads=16)
    with pytest.raises(ConfigError, match="patch_size"):
        SiglipConfig(width=64, depth=1, mlp_dim=8, num_heads=4, patch_size=13)


def test_published_gemma_sizes_are_those_of_openpi() -> None:
    assert GEMMA_VARIANTS["gemma_2b"] == GemmaConfig(2048, 18, 16384, 8, 1, 256)
    assert GEMMA_VARIANTS["gemma_300m"] == GemmaConfig(1024, 18, 4096, 8, 1, 256)


@pytest.mark.parametrize("name", OPENPI_CONFIGS)
def test_every_openpi_configuration_fits_its_robot(name: str) -> None:
    config = openpi_config(name)
    environment = ENVIRONMENTS[config.environment]
    assert environment.action_width <= config.action_dim
    if config.delta_mask is not None:
        assert len(config.delta_mask) == environment.action_width


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_default_policies_of_the_environments_exist(name: str) -> None:
    assert openpi_config(ENVIRONMENTS[name].default_config).environment == name


def test_pi05_libero_never_sees_the_state() -> None:
    assert not openpi_config("pi05_libero").discrete_state_input


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"environment": "MOON"}, "known: ALOHA"),
        ({"num_steps": 0}, "--num-steps"),
        ({"port": 70000}, "--port"),
        ({"port": 9100}, "different ports"),
        ({"max_message_bytes": 10}, "--max-message-bytes"),
        ({"hang_s": 0.0}, "--hang-seconds"),
        ({"drain_s": -1.0}, "drain_s"),
        ({"calibration": "some.mcap"}, "--calibration is for --precision fp8"),
        (
            {"backend": "tensorrt", "precision": "fp8", "engine_dir": "e", "calibration": "some.mcap"},
            "calibrated already: leave --calibration out",
        ),
    ],
)
def test_serving_options_that_cannot_work_are_refused(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        dataclasses.replace(ServeConfig("LIBERO", "demo"), **change)
