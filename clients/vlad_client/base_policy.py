"""What every policy offers, near or far."""

from __future__ import annotations

import abc
from typing import Any


class BasePolicy(abc.ABC):
    """Turns observations into actions."""

    @abc.abstractmethod
    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one observation; its `actions` are what the robot executes."""

    def reset(self) -> None:  # noqa: B027 - most policies keep nothing between episodes
        """Forget the present episode."""
