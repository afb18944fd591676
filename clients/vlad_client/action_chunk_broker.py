"""Hands out an action chunk one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlad_client.base_policy import BasePolicy


class ActionChunkBroker(BasePolicy):
    """A policy of single actions, made of a policy of action chunks.

    The inner policy is asked when nothing is left of the previous chunk; the control loop waits
    for it. Each call returns the reply with every array in it, at any depth of maps and lists,
    indexed at the present step; other values are passed on.

    Args:
        policy: gives chunks; the first axis of each array in its replies is the step.
        action_horizon: steps to play of each chunk. Fewer than the chunk has discards the rest;
            more makes `infer` raise IndexError once the chunk ends.

    Raises:
        ValueError: if `action_horizon` is not positive.
    """

    def __init__(self, policy: BasePolicy, action_horizon: int) -> None:
        if action_horizon < 1:
            raise ValueError(f"action_horizon must be positive, not {action_horizon}")
        self._policy = policy
        self._action_horizon = action_horizon
        self._chunk: dict[str, Any] | None = None
        self._step = 0

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return the present step of the chunk; `observation` is used only where a new chunk is due.

        Raises:
            IndexError: if the chunk is shorter than `action_horizon`.
        """
        if self._chunk is None:
            self._chunk = self._policy.infer(observation)
            self._step = 0
        action = {key: self._at_step(value, key) for key, value in self._chunk.items()}
        self._step += 1
        if self._step >= self._action_horizon:
            self._chunk = None
        return action

    def reset(self) -> None:
        """Drop what is left of the chunk and reset the inner policy."""
        self._policy.reset()
        self._chunk = None

    def _at_step(self, value: Any, path: str) -> Any:
        if isinstance(value, np.ndarray):
            if value.ndim == 0 or self._step >= len(value):
                raise IndexError(
                    f"'{path}' of shape {value.shape} has no step {self._step}; "
                    f"action_horizon is {self._action_horizon}"
                )
            return value[self._step]
        if isinstance(value, dict):
            return {key: self._at_step(item, f"{path}/{key}") for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([self._at_step(item, f"{path}/{n}") for n, item in enumerate(value)])
        return value
