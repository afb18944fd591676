"""How far the chunks of two runs are apart, per joint and per step of the chunk."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError
from vlad_server.recordings.run_file import Run

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs over the same requests.

    Attributes:
        first, second: with the requests that both have, in the same order.
        only_first, only_second: how many requests the other one has not.
    """

    first: Run
    second: Run
    only_first: int
    only_second: int

    @property
    def difference(self) -> Array:
        """Second less first, `[requests, action_horizon, action_width]` in the robot's units."""
        return self.second.actions - self.first.actions

    @property
    def span(self) -> Array:
        """How far each joint of the first run moves, `[action_width]`: its 1st to its 99th percentile."""
        low, high = np.percentile(self.first.actions, [1, 99], axis=(0, 1))
        return np.asarray(high - low)

    def per_joint(self) -> list[dict[str, float]]:
        """For each joint: mean, p99 and largest absolute difference, its span, and the largest over it.

        Infinite where a joint that does not move in the first run does so in the second.
        """
        absolute = np.abs(self.difference)
        p99 = np.percentile(absolute, 99, axis=(0, 1))
        mean, most = absolute.mean(axis=(0, 1)), absolute.max(axis=(0, 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(most == 0, 0.0, most / self.span)
        return [
            {"mean": float(a), "p99": float(b), "max": float(c), "span": float(d), "max_over_span": float(e)}
            for a, b, c, d, e in zip(mean, p99, most, self.span, ratio, strict=True)
        ]

    def per_step(self) -> Array:
        """Mean absolute difference `[action_horizon, action_width]`, for each step of the chunk and joint."""
        return np.asarray(np.abs(self.difference).mean(axis=0))

    def worst(self) -> tuple[int, int, int]:
        """Request number, step and joint of the largest absolute difference."""
        absolute = np.abs(self.difference)
        request, step, joint = np.unravel_index(absolute.argmax(), absolute.shape)
        return int(self.first.numbers[request]), int(step), int(joint)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        number, step, joint = self.worst()
        return {
            "first": {"source": self.first.source, "name": self.first.name},
            "second": {"source": self.second.source, "name": self.second.name},
            "requests": len(self.first.numbers),
            "only_first": self.only_first,
            "only_second": self.only_second,
            "identical": not self.difference.any(),
            "per_joint": self.per_joint(),
            "per_step": self.per_step().tolist(),
            "worst": {"request": number, "step": step, "joint": joint},
        }

    def table(self) -> str:
        """The report that people read."""
        lines = [
            f"A  {self.first.name}: {self.first.source}",
            f"B  {self.second.name}: {self.second.source}",
            f"{len(self.first.numbers)} requests in both"
            f" ({self.only_first} only in A, {self.only_second} only in B), "
            f"{self.first.actions.shape[1]} steps, {self.first.actions.shape[2]} joints",
        ]
        if not self.difference.any():
            return "\n".join([*lines, "every action is the same, bit for bit"])
        lines.append(f"{'|B - A|':<10}{'mean':>11}{'p99':>11}{'max':>11}{'span of A':>12}{'max/span':>10}")
        for joint, row in enumerate(self.per_joint()):
            lines.append(
                f"joint {joint:<4}{row['mean']:>11.3g}{row['p99']:>11.3g}{row['max']:>11.3g}"
                f"{row['span']:>12.3g}{row['max_over_span']:>10.2g}"
            )
        steps = " ".join(f"{value:.2g}" for value in self.per_step().mean(axis=1))
        number, step, joint = self.worst()
        return "\n".join(
            [*lines, f"mean per step  {steps}", f"largest at request {number}, step {step}, joint {joint}"]
        )


def compare(first: Run, second: Run) -> Comparison:
    """Match two runs by the numbers of their requests.

    Raises:
        ConfigError: for chunks of different shapes, and runs without a common request.
    """
    shapes = [run.actions.shape[1:] for run in (first, second)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"chunks of {first.source} are {shapes[0][0]}x{shapes[0][1]}, "
            f"those of {second.source} {shapes[1][0]}x{shapes[1][1]}: they cannot be compared"
        )
    common, in_first, in_second = np.intersect1d(first.numbers, second.numbers, return_indices=True)
    if not len(common):
        raise ConfigError(f"{first.source} and {second.source} have no request in common")
    return Comparison(
        _chosen(first, in_first),
        _chosen(second, in_second),
        len(first.numbers) - len(common),
        len(second.numbers) - len(common),
    )


def _chosen(run: Run, rows: npt.NDArray[np.intp]) -> Run:
    return dataclasses.replace(run, numbers=run.numbers[rows], actions=run.actions[rows])
