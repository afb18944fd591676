"""The backend as a policy makes it, over stand-ins for TensorRT and the GPU: chosen by name, then checked."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

import pytest

from tests.support import fidelity
from tests.support.host_tensorrt import HostDevice, make_tensorrt
from vlad_configs.errors import CheckpointError
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import create_backend
from vlad_engines.backends.tensorrt import backend as tensorrt_backend
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.fidelity.check import check_backend

OPTIONS = BackendOptions(fidelity.STEPS, "fp32", "cuda", camera_counts=(1, 2), batch_sizes=(1, 2))


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> Any:
    device = HostDevice()
    module = make_tensorrt("10.13.3.9", device)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(tensorrt_backend, "open_device", lambda name: device)
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    return module


@pytest.mark.parametrize("family", ["pi05", "pi0"])
def test_it_passes_the_check_that_stands_before_every_robot(tensorrt: Any, family: str) -> None:
    opened = fidelity.checkpoint(family)
    backend = create_backend("tensorrt", opened.contract.model, open_weights(opened, "cpu"), OPTIONS)
    reference = fidelity.reference(family, observations=2)
    report = check_backend(backend, reference, name="tensorrt", precision="fp32", batch_sizes=(1, 2))
    assert report.passed, report.table()
    assert report.traced


def test_a_robot_starts_with_prebuilt_engines_and_no_weights(tensorrt: Any, tmp_path: pathlib.Path) -> None:
    opened = fidelity.checkpoint("pi05")
    builder = create_backend("tensorrt", opened.contract.model, open_weights(opened, "cpu"), OPTIONS)
    builder.warm_up(lambda stage, fraction: None)
    assert len(tensorrt.builds) == 3
    options = dataclasses.replace(OPTIONS, engine_dir=str(tmp_path / "tensorrt"))
    robot = create_backend("tensorrt", opened.contract.model, {}, options)
    reference = fidelity.reference("pi05")
    report = check_backend(robot, reference, name="tensorrt", precision="fp32", batch_sizes=(1,))
    assert report.passed, report.table()
    assert len(tensorrt.builds) == 3


def test_weights_of_another_family_are_refused(tensorrt: Any) -> None:
    weights = open_weights(fidelity.checkpoint("pi05"), "cpu")
    with pytest.raises(CheckpointError, match=r"missing .*state_proj"):
        create_backend("tensorrt", fidelity.checkpoint("pi0").contract.model, weights, OPTIONS)
