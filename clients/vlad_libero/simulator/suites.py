"""The suites of LIBERO: tasks, instructions, fixed initial states.

Imports neither torch nor the simulator.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import pickle
import re
import zipfile
from typing import Any, Mapping

import numpy as np
import numpy.typing as npt

from vlad_libero.errors import LiberoError
from vlad_libero.simulator.package import libero_directory

# Steps after which an episode counts as failed, as openpi's evaluation has them.
MAX_STEPS: Mapping[str, int] = {
    "libero_spatial": 220,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: name of the suite.
        index: place in the suite's order.
        name: of its files.
        prompt: the instruction, as the benchmark gives it to policies.
    """

    suite: str
    index: int
    name: str
    prompt: str

    @property
    def bddl_file(self) -> pathlib.Path:
        """The task's description for the simulator."""
        return libero_directory() / "bddl_files" / self.suite / f"{self.name}.bddl"

    def initial_states(self) -> npt.NDArray[np.float64]:
        """The suite's fixed initial states, [states, time + positions + velocities].

        Raises:
            LiberoError: where the file is missing or not what the benchmark publishes.
        """
        path = libero_directory() / "init_files" / self.suite / f"{self.name}.pruned_init"
        try:
            with zipfile.ZipFile(path) as archive:
                (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
                with archive.open(name) as stream:
                    states = _ArrayUnpickler(stream).load()
        except (OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
            raise LiberoError(f"{path} holds no initial states: {error}") from error
        if not isinstance(states, np.ndarray) or states.ndim != 2:
            raise LiberoError(f"{path} holds a {type(states).__name__}, expected an array of states")
        return np.asarray(states, np.float64)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and refuses anything else: a pickle may otherwise run what it likes."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        # Bytes of old pickles are text that `encode` turns back.
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if module.split(".")[0] != "numpy" or name not in self._ALLOWED:
            raise pickle.UnpicklingError(f"unexpected content {module}.{name}")
        return super().find_class(module, name)


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def suite_tasks(suite: str) -> list[Task]:
    """The tasks of a suite in the benchmark's order.

    Raises:
        LiberoError: for an unknown suite.
        SimulatorMissingError: where hf-libero is not installed.
    """
    if suite not in MAX_STEPS:
        raise LiberoError(f"unknown suite '{suite}', expected one of {', '.join(MAX_STEPS)}")
    names = _task_map()[suite]
    return [Task(suite, index, name, prompt_of(name)) for index, name in enumerate(names)]


def prompt_of(name: str) -> str:
    """The instruction in a task's file name, as the benchmark derives it.

    Names of the large suites begin with their scene in capitals, which is no part of the instruction.
    """
    return re.sub(r"^[A-Z_]+SCENE\d+_", "", name).replace("_", " ")


def _task_map() -> dict[str, list[str]]:
    # By its path: importing the package around it would import torch.
    path = libero_directory() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("vlad_libero_task_map", path)
    if spec is None or spec.loader is None:
        raise LiberoError(f"{path} cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tasks: dict[str, list[str]] = module.libero_task_map
    return tasks
