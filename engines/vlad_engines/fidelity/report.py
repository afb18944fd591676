"""What a fidelity check found, as data, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from vlad_configs.fidelity import FidelityThresholds
from vlad_engines.fidelity.metrics import ActionErrors, Similarity

DISPLACEMENT = "displacement"
"""Name of the component entry for actions minus noise, which needs no trace."""

FINAL = "final"
"""Name of the row for the actions that `infer` returned."""

BATCH = "batch of "
"""Beginning of the names of the rows for batches; the size follows."""


@dataclasses.dataclass(frozen=True)
class FidelityReport:
    """A backend against the float32 reference.

    Attributes:
        backend: name in the registry.
        precision: selects the thresholds.
        num_steps: Euler steps.
        observations: how many were compared.
        traced: whether the backend let its components be looked into. Without, only `displacement` and
            the final actions are compared.
        components: `vision_tokens`, `prefix_keys`, `prefix_values`, `velocity` (rows are layers or steps)
            and `displacement` (actions minus noise).
        actions: after each step, named by its number; `final`; and `batch of N` where batches are served.
        thresholds: what was asked for.
    """

    backend: str
    precision: str
    num_steps: int
    observations: int
    traced: bool
    components: dict[str, Similarity]
    actions: dict[str, ActionErrors]
    thresholds: FidelityThresholds

    @property
    def failures(self) -> tuple[str, ...]:
        """One line per threshold that was missed; empty where the backend may serve."""
        return tuple(self._failures())

    @property
    def passed(self) -> bool:
        """Whether every threshold was reached."""
        return not self.failures

    @property
    def final(self) -> ActionErrors:
        """Of the actions that a robot would get."""
        return self.actions[FINAL]

    def summary(self) -> dict[str, Any]:
        """For the metadata: plain JSON and msgpack types. Numbers that are not finite become None."""
        return {
            "passed": self.passed,
            "precision": self.precision,
            "observations": self.observations,
            "num_steps": self.num_steps,
            "traced": self.traced,
            "action_cosine": _finite(self.final.cosine),
            "action_error_p50": _finite(self.final.p50),
            "action_error_p99": _finite(self.final.p99),
            "action_error_max": _finite(self.final.max),
            "failures": list(self.failures),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain JSON types; `from_json` reads it back."""
        return {
            "backend": self.backend,
            "precision": self.precision,
            "num_steps": self.num_steps,
            "observations": self.observations,
            "traced": self.traced,
            "passed": self.passed,
            "failures": list(self.failures),
            "components": {name: _fields(entry) for name, entry in self.components.items()},
            "actions": {name: _fields(entry) for name, entry in self.actions.items()},
            "thresholds": dataclasses.asdict(self.thresholds),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FidelityReport:
        """Read what `to_json` wrote; the verdict is taken anew from the numbers.

        Raises:
            KeyError, TypeError: for anything else.
        """
        return cls(
            **{name: data[name] for name in ("backend", "precision", "num_steps", "observations", "traced")},
            components={name: Similarity(**_numbers(entry)) for name, entry in data["components"].items()},
            actions={name: ActionErrors(**_numbers(entry)) for name, entry in data["actions"].items()},
            thresholds=FidelityThresholds(**data["thresholds"]),
        )

    def table(self) -> str:
        """The report for people."""
        return "\n".join(self._lines())

    def _failures(self) -> Iterator[str]:
        limits = self.thresholds
        for name, entry in self.components.items():
            # Written so that NaN fails.
            limit = self._least_cosine(name)
            if not entry.cosine >= limit:
                yield f"{name}: cosine {entry.cosine:.6f} (row {entry.worst_row}) is below {limit}"
        for title, action in self.actions.items():
            if title != FINAL and not title.startswith(BATCH):
                continue
            what = "actions" if title == FINAL else f"actions, {title}"
            if not action.cosine >= limits.action_cosine:
                yield f"{what}: cosine {action.cosine:.6f} is below {limits.action_cosine}"
            for name in ("p99", "max"):
                error, limit = getattr(action, name), getattr(limits, f"action_error_{name}")
                if not error <= limit:
                    yield f"{what}: normalised error {name} {error:.4g} is above {limit}"

    def _least_cosine(self, component: str) -> float:
        limits = self.thresholds
        return limits.displacement_cosine if component == DISPLACEMENT else limits.component_cosine

    def _lines(self) -> Iterator[str]:
        yield (
            f"{self.backend} {self.precision} against the float32 reference: "
            f"{self.observations} observations, {self.num_steps} steps"
        )
        if not self.traced:
            yield f"{self.backend} shows no components; compared are the final actions alone"
        yield ""
        titles = ("1-cosine", "allowed", "worst row", "max abs")
        yield f"{'component':<16}{'cosine':>10}" + "".join(f"{title:>11}" for title in titles)
        for name, entry in self.components.items():
            yield (
                f"{name:<16}{entry.cosine:>10.6f}{1 - entry.cosine:>11.2e}"
                f"{1 - self._least_cosine(name):>11.2e}{entry.worst_row:>11}{entry.max_abs:>11.3g}"
            )
        yield ""
        yield f"{'actions':<16}{'cosine':>10}{'1-cosine':>11}{'max abs':>11}{'p50':>11}{'p99':>11}{'max':>11}"
        for name, action in self.actions.items():
            title = f"step {name}" if name.isdecimal() else name
            yield (
                f"{title:<16}{action.cosine:>10.6f}{1 - action.cosine:>11.2e}{action.max_abs:>11.3g}"
                f"{action.p50:>11.3g}{action.p99:>11.3g}{action.max:>11.3g}"
            )
        limits = self.thresholds
        yield (
            f"{'allowed':<16}{limits.action_cosine:>10.6f}{1 - limits.action_cosine:>11.2e}{'':>22}"
            f"{limits.action_error_p99:>11.3g}{limits.action_error_max:>11.3g}"
        )
        yield ""
        yield "passed" if self.passed else "FAILED\n  " + "\n  ".join(self.failures)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _fields(entry: Similarity | ActionErrors) -> dict[str, Any]:
    """JSON has no NaN and no infinity; null stands for either."""
    return {
        name: _finite(value) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(entry).items()
    }


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in entry.items()}
