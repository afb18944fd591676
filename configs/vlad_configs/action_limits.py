"""Limits that every chunk can be held against before a robot gets it. Pure logic; off unless configured."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError

Reaction = Literal["warn", "clip", "refuse"]

_KEYS = frozenset({"environment", "reaction", "low", "high", "max_step"})


@dataclasses.dataclass(frozen=True)
class Violations:
    """How many actions of a chunk lie outside each limit, and the first one in words."""

    low: int
    high: int
    step: int
    first: str


@dataclasses.dataclass(frozen=True)
class ActionLimits:
    """What a robot may be told to do, per action, in the robot's units; None where there is no limit.

    Attributes:
        environment: a name of `ENVIRONMENTS`.
        reaction: what happens to a chunk outside: `warn` sends it as it is, `clip` sends the nearest one
            inside, `refuse` sends an error instead.
        low, high: least and largest value.
        max_step: largest change from one action of a chunk to the next.
    """

    environment: str
    reaction: Reaction
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    max_step: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS:
            known = ", ".join(sorted(ENVIRONMENTS))
            raise ConfigError(f"action limits: unknown environment '{self.environment}'; known: {known}")
        if self.reaction not in get_args(Reaction):
            raise ConfigError(f"action limits: reaction must be warn, clip or refuse, not {self.reaction!r}")
        width = ENVIRONMENTS[self.environment].action_width
        for name in ("low", "high", "max_step"):
            values = getattr(self, name)
            if len(values) != width:
                raise ConfigError(
                    f"action limits: '{name}' needs {width} entries for {self.environment}, not {len(values)}"
                )
        for index, (low, high, step) in enumerate(zip(self.low, self.high, self.max_step, strict=True)):
            if low is not None and high is not None and low > high:
                raise ConfigError(f"action limits: 'low' of action {index} lies above its 'high'")
            if step is not None and step <= 0:
                raise ConfigError(f"action limits: 'max_step' of action {index} must be positive, not {step}")
        if all(limit is None for limit in (*self.low, *self.high, *self.max_step)):
            raise ConfigError("action limits: the file limits nothing")

    def violations(self, actions: npt.NDArray[np.float64]) -> Violations | None:
        """What is wrong with a finite chunk `[action_horizon, action_width]`; None for nothing."""
        below, above = actions < self._lowest, actions > self._highest
        # A hair too far is rounding, such as that of clip() itself.
        steps, sizes = np.abs(np.diff(actions, axis=0)), np.abs(actions)
        rounding = np.spacing(np.maximum(sizes[1:], sizes[:-1]))
        too_far = steps > self._farthest * (1 + 1e-9) + rounding
        if not (below.any() or above.any() or too_far.any()):
            return None
        return Violations(
            low=int(below.sum()),
            high=int(above.sum()),
            step=int(too_far.sum()),
            first=self._first(actions, below, above, steps, too_far),
        )

    def clip(self, actions: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """A chunk inside the limits: each action as near to its own as the one before it allows."""
        inside = np.clip(actions, self._lowest, self._highest)
        most = self._farthest
        for step in range(1, len(inside)):
            inside[step] = np.clip(inside[step], inside[step - 1] - most, inside[step - 1] + most)
        return inside

    @functools.cached_property
    def _lowest(self) -> npt.NDArray[np.float64]:
        return _filled(self.low, -math.inf)

    @functools.cached_property
    def _highest(self) -> npt.NDArray[np.float64]:
        return _filled(self.high, math.inf)

    @functools.cached_property
    def _farthest(self) -> npt.NDArray[np.float64]:
        return _filled(self.max_step, math.inf)

    def _first(self, actions: Any, below: Any, above: Any, steps: Any, too_far: Any) -> str:
        for outside, name, word in ((below, "low", "below"), (above, "high", "above")):
            if outside.any():
                step, index = np.argwhere(outside)[0]
                limit = getattr(self, name)[index]
                return f"action {index} of step {step} is {actions[step, index]:.6g}, {word} {limit:.6g}"
        step, index = np.argwhere(too_far)[0]
        return (
            f"action {index} changes by {steps[step, index]:.6g} from step {step} to step {step + 1}, "
            f"more than {self.max_step[index]:.6g}"
        )


def load_action_limits(path: pathlib.Path, environment: str) -> ActionLimits:
    """Read limits from a JSON file; `low`, `high` and `max_step` may be left out, their entries null.

    Raises:
        ConfigError: where it cannot be read, is for another environment, or holds anything unknown.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the action limits {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"action limits {path}: not JSON: {error}") from None
    if not isinstance(content, dict) or not {"environment", "reaction"} <= content.keys() <= _KEYS:
        raise ConfigError(
            f"action limits {path}: expected a map with environment, reaction, and low, high or max_step"
        )
    if content["environment"] != environment:
        raise ConfigError(
            f"action limits {path} are for {content['environment']}, and --env is {environment}"
        )
    try:
        return ActionLimits(
            environment=environment,
            reaction=content["reaction"],
            low=_column(content, "low", environment),
            high=_column(content, "high", environment),
            max_step=_column(content, "max_step", environment),
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _column(content: Mapping[str, Any], name: str, environment: str) -> tuple[float | None, ...]:
    values = content.get(name, [None] * ENVIRONMENTS[environment].action_width)
    fits = isinstance(values, list) and all(
        value is None or (type(value) in (int, float) and math.isfinite(value)) for value in values
    )
    if not fits:
        raise ConfigError(f"action limits: '{name}' must be a list of finite numbers and nulls")
    return tuple(None if value is None else float(value) for value in values)


def _filled(limits: tuple[float | None, ...], free: float) -> npt.NDArray[np.float64]:
    return np.array([free if limit is None else limit for limit in limits], np.float64)
