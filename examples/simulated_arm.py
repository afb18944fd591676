"""A LIBERO arm without hardware: it moves as it is told and sees recorded images, shifted as it moves."""

from __future__ import annotations

import pathlib
import threading
from typing import Any

import numpy as np

OBSERVATIONS = pathlib.Path(__file__).parent / "data" / "libero_observations.npz"

TRANSLATION_M = 0.05
ROTATION_RAD = 0.5
CONTROL_HZ = 20.0
"""What a LIBERO action of 1 means, and how many of them are executed a second."""

PIXELS_PER_M = 400.0
GRIPPER_OPEN_M = 0.04


class SimulatedArm:
    """An end effector that integrates position and rotation deltas; `observe` and `apply` may come from
    different threads.

    Args:
        scene: which of the 28 recorded observations the arm looks at.
    """

    def __init__(self, scene: int = 0) -> None:
        with np.load(OBSERVATIONS) as recorded:
            self._image = recorded["image"][scene]
            self._wrist_image = recorded["wrist_image"][scene]
            self._start: np.ndarray[Any, Any] = recorded["state"][scene]
            self._prompt = str(recorded["prompt"][scene])
        self._lock = threading.Lock()
        self._state = self._start.copy()
        self.executed = 0

    def reset(self) -> None:
        """Go back to the start."""
        with self._lock:
            self._state = self._start.copy()
            self.executed = 0

    def observe(self) -> dict[str, Any]:
        """What the policy needs to know, in the keys of LIBERO."""
        with self._lock:
            state = self._state.copy()
        x, y = np.round(PIXELS_PER_M * (state[:2] - self._start[:2])).astype(int)
        return {
            "observation/image": np.roll(self._image, (x, y), (0, 1)),
            "observation/wrist_image": np.roll(self._wrist_image, (-x, -y), (0, 1)),
            "observation/state": state,
            "prompt": self._prompt,
        }

    def apply(self, action: np.ndarray[Any, Any]) -> None:
        """Execute one action: translation (3), rotation (3), gripper (-1 opens, +1 closes)."""
        delta = np.clip(action, -1, 1)
        opening = GRIPPER_OPEN_M * (1 - delta[6]) / 2
        with self._lock:
            # One step of CONTROL_HZ moves a controller part of the way that the action commands.
            self._state[:3] += TRANSLATION_M / CONTROL_HZ * delta[:3]
            self._state[3:6] += ROTATION_RAD / CONTROL_HZ * delta[3:6]
            self._state[6:] = opening, -opening
            self.executed += 1
