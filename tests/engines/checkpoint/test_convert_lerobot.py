"""LeRobot and openpi layouts into each other: same weights, same statistics, same meaning, or a refusal."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from tests.support.checkpoints import small_model, small_tensors, stats_for, write_libero, write_openpi
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError, ConfigError
from vlad_engines.checkpoint.convert.cli import Args, convert
from vlad_engines.checkpoint.loader import LazyWeights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint


def weights_of(checkpoint: PolicyCheckpoint) -> LazyWeights:
    return LazyWeights(checkpoint.files, checkpoint.names)


def write_source(directory: pathlib.Path, config: str) -> pathlib.Path:
    if config == "pi0_libero":
        return write_libero(directory, "pi0", num_denoising_steps=7)
    model = small_model("pi05", action_horizon=15)
    return write_openpi(
        directory,
        model,
        small_tensors(model),
        stats=stats_for(ENVIRONMENTS["DROID"]),
        asset_id="droid",
        config={"openpi_config": config, "rtc_training_max_delay": 3},
    )


@pytest.mark.parametrize("config", ["pi0_libero", "pi05_droid", "pi05_full_droid_finetune"])
def test_there_and_back_is_where_it_began(tmp_path: pathlib.Path, config: str) -> None:
    source = write_source(tmp_path / "openpi", config)
    begun = open_policy_checkpoint(source)
    environment = begun.contract.environment.name
    convert(Args(str(source), tmp_path / "lerobot", to="lerobot", dtype="fp32"))
    between = open_policy_checkpoint(tmp_path / "lerobot", environment=environment)
    assert between.contract.layout == "lerobot"
    assert np.flatnonzero(between.contract.delta_mask or ()).tolist() == (
        np.flatnonzero(begun.contract.delta_mask or ()).tolist()
    )
    convert(Args(str(tmp_path / "lerobot"), tmp_path / "back", config=config, env=environment, dtype="fp32"))
    back = open_policy_checkpoint(tmp_path / "back")
    for name, weight in weights_of(begun).items():
        np.testing.assert_array_equal(weight.numpy(), weights_of(back)[name].numpy(), err_msg=name)
    for field in ("model", "num_denoising_steps", "prompt_template", "norm_kind", "trained_max_delay"):
        assert getattr(back.contract, field) == getattr(begun.contract, field), field
    np.testing.assert_allclose(back.norm_stats.state.q01, begun.norm_stats.state.q01, rtol=1e-6)
    np.testing.assert_allclose(back.norm_stats.actions.std, begun.norm_stats.actions.std, rtol=1e-6)


def test_what_lerobot_cannot_express_is_refused(tmp_path: pathlib.Path) -> None:
    source = write_libero(tmp_path / "openpi", "pi05")
    with pytest.raises(CheckpointError, match=r"no state in its prompt \(pi05_libero\)"):
        convert(Args(str(source), tmp_path / "out", to="lerobot"))
    assert not (tmp_path / "out").exists()


def test_a_configuration_of_another_meaning_is_refused(tmp_path: pathlib.Path) -> None:
    source = write_source(tmp_path / "openpi", "pi05_droid")
    convert(Args(str(source), tmp_path / "lerobot", to="lerobot"))
    arguments = Args(
        str(tmp_path / "lerobot"), tmp_path / "out", config="pi05_full_droid_finetune", env="DROID"
    )
    with pytest.raises(CheckpointError, match="relative actions"):
        convert(arguments)
    with pytest.raises(ConfigError, match="needs --config"):
        convert(Args(str(tmp_path / "lerobot"), tmp_path / "out", env="DROID"))


def test_nothing_is_overwritten(tmp_path: pathlib.Path) -> None:
    source = write_source(tmp_path / "openpi", "pi0_libero")
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        convert(Args(str(source), tmp_path / "out", to="lerobot"))
    with pytest.raises(ConfigError, match="layout openpi already"):
        convert(Args(str(source), tmp_path / "other"))
