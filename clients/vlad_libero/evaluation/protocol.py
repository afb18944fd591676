"""What an evaluation runs: suite, trials, seeds, limits. Two runs of equal protocols can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Mapping

from vlad_libero.errors import LiberoError, ResultsError
from vlad_libero.simulator.suites import MAX_STEPS

QUICK_TASKS = (0, 4, 9)
QUICK_TRIALS = 2
_PUBLISHED_TRIALS = 50


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The published LIBERO protocol, as openpi's evaluation has it, and deviations by option.

    Attributes:
        suite: name of the suite.
        tasks: indices within the suite, ascending.
        trials: initial states of each task, from the first on.
        seed: decides where fixtures stand, per episode.
        replan_steps: actions executed of each chunk.
        wait_steps: idle actions while objects settle; they count towards no limit.
        max_steps: after which an episode has failed; 0 for the suite's own.
        assets: `procedural` or `official`.
        rendering: name of the `Rendering`.
    """

    suite: str = "libero_spatial"
    tasks: tuple[int, ...] = tuple(range(10))
    trials: int = _PUBLISHED_TRIALS
    seed: int = 7
    replan_steps: int = 5
    wait_steps: int = 10
    max_steps: int = 0
    assets: str = "procedural"
    rendering: str = "light"

    def __post_init__(self) -> None:
        if self.suite not in MAX_STEPS:
            raise LiberoError(f"unknown suite '{self.suite}', expected one of {', '.join(MAX_STEPS)}")
        if not self.tasks or list(self.tasks) != sorted(set(self.tasks)) or self.tasks[0] < 0:
            raise LiberoError(f"tasks must be different indices in ascending order, not {self.tasks}")
        for name, least in (("trials", 1), ("replan_steps", 1), ("wait_steps", 0), ("max_steps", 0)):
            if getattr(self, name) < least:
                raise LiberoError(f"{name} must be at least {least}, not {getattr(self, name)}")

    @property
    def step_limit(self) -> int:
        """Actions of the policy after which an episode has failed."""
        return self.max_steps or MAX_STEPS[self.suite]

    def episodes(self) -> list[tuple[int, int]]:
        """All (task, trial), in order."""
        return [(task, trial) for task in self.tasks for trial in range(self.trials)]

    def to_json(self) -> dict[str, Any]:
        """The fields, as JSON holds them."""
        return {**dataclasses.asdict(self), "tasks": list(self.tasks)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Protocol:
        """The protocol that `to_json` gave.

        Raises:
            ResultsError: for missing or unknown fields.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(content) != names:
            raise ResultsError(f"a protocol has the fields {sorted(names)}, not {sorted(content)}")
        return cls(**{**content, "tasks": tuple(content["tasks"])})

    def fingerprint(self) -> str:
        """Twelve digits that are equal for equal protocols."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]
