"""`check_robot` against the real daemon: a sound robot passes, a broken camera is named and drawn."""

from __future__ import annotations

import itertools
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.daemon import ROOT, Daemon, start_scripted_daemon
from vlad_client.check_robot import main
from vlad_client.checkup import NoDoctorError, check_observations
from vlad_configs.environments import ENVIRONMENTS
from vlad_engines.fidelity.observations import recorded_observations

REAL = ROOT / "examples" / "data" / "libero_observations.npz"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon() as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the module `my_robot`, whose function `observe` returns real observations, changed as asked."""

    def make(**changes: Any) -> None:
        observations = itertools.cycle(recorded_observations(REAL, ENVIRONMENTS["LIBERO"]))
        module = types.ModuleType("my_robot")
        module.observe = lambda: {**next(observations), **changes}  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "my_robot", module)

    return make


def _arguments(daemon: Daemon, *more: str) -> list[str]:
    return ["--observe", "my_robot:observe", "--port", str(daemon.port), *more]


def test_a_sound_robot_passes(
    daemon: Daemon, robot: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    robot()
    assert main(_arguments(daemon)) == 0
    report = capsys.readouterr().out
    assert report.startswith("50 frames to ")
    assert "224x224x3 uint8" in report
    assert "new in 49 of 49 frames" in report
    assert report.endswith("nothing looks wrong\n")


def test_a_broken_camera_is_named_and_drawn(
    daemon: Daemon, robot: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    robot(**{"observation/wrist_image": np.zeros((224, 224, 3), np.uint8), "observation/state": np.ones(8)})
    assert main(_arguments(daemon, "--out", str(tmp_path / "check.png"))) == 1
    report = capsys.readouterr().out
    assert "WARNING image_black in 50 of 50 frames: observation/wrist_image" in report
    assert "WARNING state_frozen in 20 of 50 frames: observation/state" in report
    assert "constant" in report
    with Image.open(tmp_path / "check.png") as picture:
        assert picture.width > 500


def test_mistakes_of_the_caller_are_named(
    daemon: Daemon, robot: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    robot()
    for place, words in (
        ("my_robot", "MODULE:FUNCTION"),
        ("my_robot:look", "look"),
        ("no_such:f", "no_such"),
    ):
        assert main(["--observe", place, "--port", str(daemon.port)]) == 2
        assert words in capsys.readouterr().err
    robot(**{"observation/state": np.ones(3)})
    assert main(_arguments(daemon)) == 2
    assert "expected 8 finite numbers" in capsys.readouterr().err


def test_a_server_without_doctor_is_refused() -> None:
    with pytest.raises(NoDoctorError, match="does not examine"):
        check_observations(dict, lambda _: {}, {})
