"""The directory of a run: numbered checkpoints that are whole or absent, and the way back to the last one.

RUN/run.json                what was trained, with what
RUN/<step>/                 a policy directory, served as it is
RUN/<step>/train_state.pt   what resuming needs beside it
RUN/metrics.jsonl           one line per logged step
RUN/tensorboard/
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable
from typing import Any

import torch

from vlad_training.errors import TrainingError

logger = logging.getLogger("vlad.training")

STATE_FILE = "train_state.pt"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
_PARTIAL = ".partial"


class RunDirectory:
    """Checkpoints of one run.

    Args:
        path: is made where it does not exist.
        keep_every: checkpoints of these steps stay; of the others only the newest two.
    """

    def __init__(self, path: pathlib.Path, keep_every: int) -> None:
        self.path, self._keep_every = path, keep_every
        path.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        return sorted(int(entry.name) for entry in self.path.iterdir() if entry.name.isdecimal())

    def write_run(self, content: dict[str, Any], *, resume: bool) -> None:
        """Note what is trained; a run goes on only with what it began with.

        Raises:
            TrainingError: where the directory holds checkpoints and `resume` is False, or another run's.
        """
        file, steps = self.path / RUN_FILE, self.steps()
        if steps and not resume:
            raise TrainingError(
                f"{self.path} holds checkpoints up to step {steps[-1]}; "
                "continue with --resume, or choose another directory"
            )
        if steps:
            before = json.loads(file.read_text("utf-8"))
            different = sorted(key for key in {*before, *content} if before.get(key) != content.get(key))
            if different:
                raise TrainingError(
                    f"{self.path} was begun with another {', '.join(different)}; resume with the same, "
                    "or choose another directory"
                )
        file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")

    def save(self, step: int, write_policy: Callable[[pathlib.Path], None], state: dict[str, Any]) -> None:
        """Write the checkpoint of a step; a process that is killed meanwhile leaves none of it."""
        partial = self.path / f"{step}{_PARTIAL}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_policy(partial)
        torch.save(state, partial / STATE_FILE)
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        target = self.path / str(step)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
        _flush(self.path)
        self._remove_old()

    def last_state(self, device: torch.device) -> dict[str, Any] | None:
        """The state of the newest checkpoint that can be read; None where there is no checkpoint.

        Raises:
            TrainingError: where there are some and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            file = self.path / str(step) / STATE_FILE
            try:
                state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
            except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s is damaged (%s); the checkpoint before it is tried", file, error)
                continue
            return state
        if steps:
            raise TrainingError(f"none of the checkpoints in {self.path} can be read: {steps}")
        return None

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged from a step on: it will be computed again."""
        file = self.path / METRICS_FILE
        if not file.is_file():
            return
        # A line that the process was killed in has no end.
        lines = [line for line in file.read_text("utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] < step]
        file.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def _remove_old(self) -> None:
        for step in self.steps()[:-2]:
            if step % self._keep_every:
                shutil.rmtree(self.path / str(step))
        for partial in self.path.glob(f"*{_PARTIAL}"):
            shutil.rmtree(partial)


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
