"""Frames without a dataset, for trying things out: coloured pictures that tell which actions follow."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlad_configs.environments import Environment

_LENGTH = 24


class InventedFrames:
    """Episodes of 24 frames each for a robot; the same ones for the same arguments. See `FrameSource`."""

    def __init__(self, environment: Environment, episodes: int = 4, side: int = 64, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self._environment = environment
        phase = np.tile(np.arange(_LENGTH) / _LENGTH, episodes)
        offsets = np.repeat(random.uniform(0, 6, (episodes, environment.state_width)), _LENGTH, axis=0)
        self.states = np.sin(2 * phase[:, None] + offsets).astype(np.float32)
        mixing = random.normal(size=(environment.state_width, environment.action_width)) / 2
        self.actions = np.tanh(self.states @ mixing).astype(np.float32)
        self.episode_ends = np.repeat(np.arange(1, episodes + 1) * _LENGTH, _LENGTH)
        colours = np.repeat(random.uniform(0, 200, (episodes, 3)), _LENGTH, axis=0)
        self._colours = (colours + 55 * phase[:, None]).astype(np.uint8)
        self._cameras = [camera for camera in environment.cameras if camera.required]
        self._side = side

    def __len__(self) -> int:
        return len(self.states)

    def observation(self, index: int) -> dict[str, Any]:
        """A frame as the robot would have sent it."""
        observation: dict[str, Any] = {"prompt": "invent something"}
        offset = 0
        for vector in self._environment.state:
            observation[vector.key] = self.states[index, offset : offset + vector.width]
            offset += vector.width
        picture = np.broadcast_to(self._colours[index], (self._side, self._side, 3))
        for camera in self._cameras:
            group = observation
            for part in camera.path[:-1]:
                group = group.setdefault(part, {})
            group[camera.path[-1]] = np.moveaxis(picture, -1, 0) if camera.layout == "chw" else picture
        return observation
