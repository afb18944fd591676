"""Which checkpoint a command line means."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from vlad_configs.errors import ConfigError
from vlad_server.checkpoint_choice import CheckpointChoice, choose_checkpoint


def choose(**changes: Any) -> CheckpointChoice:
    arguments: dict[str, Any] = {"checkpoint": None, "environment": None, "policy": None, "variables": {}}
    return choose_checkpoint(**{**arguments, **changes})


def test_demo_needs_no_environment() -> None:
    assert choose(checkpoint="demo") == CheckpointChoice("demo", "LIBERO", None)


def test_demo_for_another_robot_is_refused() -> None:
    with pytest.raises(ConfigError, match="drives LIBERO, not DROID"):
        choose(checkpoint="demo", environment="DROID")


def test_own_checkpoint_needs_an_environment() -> None:
    with pytest.raises(ConfigError, match="--env, one of LIBERO"):
        choose(checkpoint="some/folder")
    assert choose(checkpoint="some/folder", environment="DROID").environment == "DROID"


def test_named_policy_brings_its_robot() -> None:
    choice = choose(policy=("pi05_droid", "some/folder"))
    assert choice == CheckpointChoice("some/folder", "DROID", "pi05_droid")


def test_named_policy_that_contradicts_the_environment_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--env DROID contradicts --policy\.config pi05_libero"):
        choose(policy=("pi05_libero", "some/folder"), environment="DROID")


def test_the_simulated_aloha_may_run_a_policy_of_the_real_one() -> None:
    assert choose(policy=("pi05_aloha", "d"), environment="ALOHA_SIM").environment == "ALOHA_SIM"


def test_unknown_policy_name_suggests_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'pi05_libero'"):
        choose(policy=("pi05_liberoo", "d"))


def test_two_checkpoints_are_refused() -> None:
    with pytest.raises(ConfigError, match="name two checkpoints"):
        choose(checkpoint="a", policy=("pi05_libero", "b"))


def test_nothing_named_and_nothing_published_lists_three_ways(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError) as caught:
        choose(environment="LIBERO", variables={"OPENPI_DATA_HOME": str(tmp_path)})
    text = str(caught.value)
    assert "--checkpoint DIRECTORY" in text
    assert "gs://openpi-assets/checkpoints/pi05_libero" in text
    assert "converted to PyTorch" in text
    assert "--checkpoint demo" in text
    assert str(tmp_path / "openpi-assets/checkpoints/pi05_libero") in text


@pytest.mark.parametrize(
    ("environment", "name", "config"),
    [
        (None, "pi0_aloha_sim", "pi0_aloha_sim"),
        ("ALOHA", "pi05_base", "pi05_aloha"),
        ("DROID", "pi05_droid", "pi05_droid"),
    ],
)
def test_published_checkpoint_is_found_in_the_data_home(
    tmp_path: pathlib.Path, environment: str | None, name: str, config: str
) -> None:
    folder = tmp_path / "openpi-assets/checkpoints" / name
    folder.mkdir(parents=True)
    choice = choose(environment=environment, variables={"OPENPI_DATA_HOME": str(tmp_path)})
    assert choice == CheckpointChoice(str(folder), environment or "ALOHA_SIM", config)


def test_remote_location_is_read_from_the_data_home_only(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "bucket/run/30000"
    with pytest.raises(ConfigError, match="downloads nothing"):
        choose(policy=("pi05_libero", "gs://bucket/run/30000"), variables={"OPENPI_DATA_HOME": str(tmp_path)})
    folder.mkdir(parents=True)
    choice = choose(
        policy=("pi05_libero", "gs://bucket/run/30000"), variables={"OPENPI_DATA_HOME": str(tmp_path)}
    )
    assert choice.checkpoint == str(folder)
