"""Tells people how a run goes: a progress bar, TensorBoard, and a line of JSON per logged step."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import tqdm

from vlad_training.errors import TrainingError
from vlad_training.run_directory import METRICS_FILE


class Progress:
    """Open while a run goes on; silent in all processes but the first.

    Raises:
        TrainingError: without TensorBoard.
    """

    def __init__(self, run: pathlib.Path, first_step: int, num_steps: int, *, silent: bool) -> None:
        self._silent = silent
        if silent:
            return
        self._file = (run / METRICS_FILE).open("a", encoding="utf-8")
        self._writer = _summary_writer(run / "tensorboard", first_step)
        self._bar = tqdm.tqdm(total=num_steps, initial=first_step, unit="step", mininterval=1.0)

    def advance(self) -> None:
        """A step is done."""
        if not self._silent:
            self._bar.update()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write down the numbers of a step."""
        if self._silent:
            return
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._bar.set_postfix(loss=f"{numbers['loss']:.4f}", lr=f"{numbers['learning_rate']:.2e}")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._silent:
            self._bar.close()
            self._writer.close()
            self._file.close()


def _summary_writer(directory: pathlib.Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(f"training needs TensorBoard ({error}); pip install 'vlad[train]'") from error
    return SummaryWriter(str(directory), purge_step=first_step)
