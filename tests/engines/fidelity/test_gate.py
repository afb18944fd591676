"""Nothing serves unchecked, a check is remembered only as long as nothing changed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import msgpack
import pytest

from vlad_configs import fidelity as thresholds
from vlad_configs.errors import ConfigError
from vlad_configs.fidelity import FIDELITY_THRESHOLDS
from vlad_engines import worker
from vlad_engines.bench.case import RequestShape, model_inputs
from vlad_engines.fidelity import gate
from vlad_engines.fidelity import reference as float32
from vlad_engines.fidelity.cache import FidelityCache
from vlad_engines.fidelity.report import FidelityReport
from vlad_engines.unified_policy import UnifiedPolicy


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("VLAD_CACHE_DIR", str(tmp_path))
    return tmp_path / "fidelity"


@pytest.fixture
def fewer_observations(monkeypatch: pytest.MonkeyPatch) -> None:
    observations = gate.fitting_observations
    monkeypatch.setattr(
        gate, "fitting_observations", lambda processor, contract: observations(processor, contract, 1)
    )


@pytest.fixture
def nothing_is_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = dataclasses.replace(FIDELITY_THRESHOLDS["bf16"], displacement_cosine=1.0)
    monkeypatch.setattr(thresholds, "FIDELITY_THRESHOLDS", {"bf16": strict})


def policy(precision: str = "bf16", **options: Any) -> UnifiedPolicy:
    return UnifiedPolicy("random:pi05_dummy", num_denoising_steps=2, precision=precision, **options)  # type: ignore[arg-type]


def verified(**options: Any) -> Mapping[str, Any]:
    candidate = policy(**options)
    candidate.verify_fidelity()
    fidelity: Mapping[str, Any] = candidate.metadata["fidelity"]
    return fidelity


def test_the_reference_itself_is_not_compared(cache_folder: pathlib.Path) -> None:
    fidelity = verified(precision="fp32")
    assert fidelity["reference"]
    assert fidelity["passed"]
    assert not cache_folder.exists()


@pytest.mark.usefixtures("fewer_observations")
def test_a_good_backend_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = verified()
    assert (first["passed"], first["override"], first["remembered"]) == (True, False, False)
    assert first["action_cosine"] > 0.999
    assert msgpack.unpackb(msgpack.packb(first)) == first

    def compute_nothing(*args: object, **options: object) -> None:
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(float32, "compute_reference", compute_nothing)
    assert verified() == {**first, "remembered": True}


@pytest.mark.usefixtures("fewer_observations")
@pytest.mark.parametrize(
    "change",
    [{"num_denoising_steps": 3}, {"enable_kv_cache": False}, {"env": "DROID"}, {"checkpoint_dir": "demo"}],
    ids=lambda change: next(iter(change)),
)
def test_another_policy_is_compared_anew(change: Mapping[str, Any]) -> None:
    verified()
    options = {"checkpoint_dir": "random:pi05_dummy", "num_denoising_steps": 2, "precision": "bf16", **change}
    candidate = UnifiedPolicy(**options)
    candidate.verify_fidelity()
    assert not candidate.metadata["fidelity"]["remembered"]


@pytest.mark.usefixtures("fewer_observations")
def test_another_calibration_is_compared_anew() -> None:
    loaded = policy()._loaded
    shape = RequestShape(1, 3)
    for seed in (0, 1):
        calibration = [model_inputs(loaded.checkpoint.contract.model, shape, seed)]
        options = dataclasses.replace(loaded.options, calibration=calibration)
        for remembered in (False, True):
            result = gate.admit(
                dataclasses.replace(loaded, options=options),
                allow_low_fidelity=False,
                progress=lambda stage, fraction: None,
                cache=FidelityCache(),
            )
            assert result["remembered"] == remembered


@pytest.mark.usefixtures("fewer_observations")
def test_other_source_code_is_compared_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    verified()
    monkeypatch.setattr("vlad_engines.fidelity.cache.source_digest", lambda: "edited")
    assert not verified()["remembered"]


@pytest.mark.usefixtures("fewer_observations")
def test_stricter_thresholds_are_held_against_remembered_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    verified()
    strict = dataclasses.replace(FIDELITY_THRESHOLDS["bf16"], displacement_cosine=1.0)
    monkeypatch.setattr(thresholds, "FIDELITY_THRESHOLDS", {"bf16": strict})
    with pytest.raises(ConfigError, match="displacement"):
        verified()


@pytest.mark.usefixtures("fewer_observations")
@pytest.mark.parametrize("damage", ["", '{"passed": true}'])
def test_a_damaged_memory_counts_as_none(cache_folder: pathlib.Path, damage: str) -> None:
    verified()
    (file,) = cache_folder.iterdir()
    file.write_text(damage)
    assert not verified()["remembered"]
    assert verified()["remembered"]


@pytest.mark.usefixtures("fewer_observations")
def test_a_memory_that_was_turned_into_a_pass_does_not_pass(cache_folder: pathlib.Path) -> None:
    verified()
    (file,) = cache_folder.iterdir()
    content = json.loads(file.read_text())
    content["actions"]["final"]["cosine"] = 0.5
    content["passed"] = True
    file.write_text(json.dumps(content))
    assert not verified()["remembered"]


@pytest.mark.usefixtures("fewer_observations")
def test_a_cache_that_cannot_be_written_does_not_keep_a_policy_from_serving(
    cache_folder: pathlib.Path,
) -> None:
    cache_folder.write_text("a file where the folder should be")
    assert verified()["passed"]


@pytest.mark.usefixtures("fewer_observations", "nothing_is_good_enough")
def test_a_backend_below_the_thresholds_is_refused_with_the_reason(cache_folder: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"displacement: cosine .* is below 1.0[\s\S]*--allow-low-fidelity"):
        verified()
    assert not cache_folder.exists(), "a failed check must not be remembered"


@pytest.mark.usefixtures("fewer_observations", "nothing_is_good_enough")
def test_an_override_serves_and_shows() -> None:
    candidate = policy()
    candidate.verify_fidelity(allow_low_fidelity=True)
    fidelity = candidate.metadata["fidelity"]
    assert fidelity["override"]
    assert not fidelity["passed"]
    assert "displacement" in fidelity["failures"][0]


@pytest.mark.usefixtures("fewer_observations", "nothing_is_good_enough")
def test_the_worker_refuses_unless_it_is_told_otherwise() -> None:
    options = {"checkpoint_dir": "random:pi05_dummy", "num_denoising_steps": 2, "precision": "bf16"}
    progress: list[str] = []

    def report(stage: str, fraction: float) -> None:
        progress.append(stage)

    with pytest.raises(ConfigError, match="too far from float32"):
        worker._unified_policy(options, report)
    assert gate.STAGE in progress
    served = worker._unified_policy({**options, "allow_low_fidelity": True}, report)
    assert served.metadata["fidelity"]["override"]


def test_a_report_survives_json(cache_folder: pathlib.Path) -> None:
    candidate = policy()
    candidate.verify_fidelity()
    (file,) = cache_folder.iterdir()
    data = json.loads(file.read_text())
    report = FidelityReport.from_json(data)
    assert report.to_json() == data
    assert report.passed
    assert FidelityCache(cache_folder).find(file.stem) == report
