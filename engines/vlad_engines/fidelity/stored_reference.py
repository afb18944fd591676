"""What float32 computes for the cases of a check, and the file in which it travels. Needs no torch."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
from typing import Any

import numpy as np

from vlad_configs.errors import ConfigError
from vlad_engines.backends.capabilities import Trace
from vlad_engines.fidelity.observations import FidelityCase
from vlad_engines.processing.model_inputs import ModelInputs

_INPUTS = ("images", "tokens", "token_mask", "state", "robot_state")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What float32 computes for the cases of a check, in host memory."""

    cases: tuple[FidelityCase, ...]
    traces: tuple[Trace, ...]
    num_steps: int

    def with_cameras(self, counts: tuple[int, ...]) -> Reference:
        """The cases that have one of these numbers of cameras."""
        kept = [
            (case, trace)
            for case, trace in zip(self.cases, self.traces, strict=True)
            if len(case.inputs.cameras) in counts
        ]
        return Reference(tuple(case for case, _ in kept), tuple(trace for _, trace in kept), self.num_steps)


def write_reference(path: pathlib.Path, reference: Reference) -> None:
    """Write a reference as npz.

    Raises:
        OSError: where that fails.
    """
    arrays: dict[str, Any] = {"num_steps": np.array(reference.num_steps)}
    for index, (case, trace) in enumerate(zip(reference.cases, reference.traces, strict=True)):
        arrays[f"{index}.cameras"] = np.array(case.inputs.cameras)
        arrays[f"{index}.noise"] = case.noise
        for name in _INPUTS:
            arrays[f"{index}.{name}"] = getattr(case.inputs, name)
        for field in dataclasses.fields(Trace):
            arrays[f"{index}.{field.name}"] = getattr(trace, field.name)
    np.savez(path, **arrays)


def read_reference(path: pathlib.Path) -> Reference:
    """Read what `write_reference` wrote.

    Raises:
        ConfigError: for anything else.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            count = len({name.partition(".")[0] for name in arrays.files if "." in name})
            cases, traces = [], []
            for index in range(count):
                inputs = {name: arrays[f"{index}.{name}"] for name in _INPUTS}
                cameras = tuple(str(camera) for camera in arrays[f"{index}.cameras"])
                cases.append(FidelityCase(ModelInputs(cameras=cameras, **inputs), arrays[f"{index}.noise"]))
                parts = {field.name: arrays[f"{index}.{field.name}"] for field in dataclasses.fields(Trace)}
                traces.append(Trace(**parts))
            return Reference(tuple(cases), tuple(traces), int(arrays["num_steps"]))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is not a readable fidelity reference: {error}") from error
