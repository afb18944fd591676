"""Frames without a dataset, for trying things out: pictures of noise, actions that follow the state."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlad_configs.environments import Environment

_LENGTH = 24


class InventedFrames:
    """Episodes of 24 frames each for a robot; the same ones for the same arguments. See `FrameSource`."""

    def __init__(self, environment: Environment, episodes: int = 4, side: int = 64, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        count = episodes * _LENGTH
        self._environment = environment
        self.states = random.uniform(-1, 1, (count, environment.state_width)).astype(np.float32)
        mixing = random.normal(size=(environment.state_width, environment.action_width)) / 3
        self.actions = np.tanh(self.states @ mixing).astype(np.float32)
        self.episode_ends = np.repeat(np.arange(1, episodes + 1) * _LENGTH, _LENGTH)
        cameras = [camera for camera in environment.cameras if camera.required]
        self._pictures = {
            camera: random.integers(0, 256, (count, side, side, 3), dtype=np.uint8) for camera in cameras
        }

    def __len__(self) -> int:
        return len(self.states)

    def observation(self, index: int) -> dict[str, Any]:
        """A frame as the robot would have sent it."""
        observation: dict[str, Any] = {"prompt": "invent something"}
        offset = 0
        for vector in self._environment.state:
            observation[vector.key] = self.states[index, offset : offset + vector.width]
            offset += vector.width
        for camera, pictures in self._pictures.items():
            group = observation
            for part in camera.path[:-1]:
                group = group.setdefault(part, {})
            picture = pictures[index]
            group[camera.path[-1]] = np.moveaxis(picture, -1, 0) if camera.layout == "chw" else picture
        return observation
