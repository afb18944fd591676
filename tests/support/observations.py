"""A valid request for each environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.libero import libero_observation


def observation_for(environment: str, seed: int = 0) -> dict[str, Any]:
    """A random request with the keys and shapes that openpi's examples use."""
    random = np.random.default_rng(seed)

    def image(*shape: int) -> np.ndarray[Any, Any]:
        return random.integers(256, size=shape, dtype=np.uint8)

    if environment == "LIBERO":
        return libero_observation(seed)
    if environment == "DROID":
        return {
            "observation/exterior_image_1_left": image(224, 224, 3),
            "observation/wrist_image_left": image(224, 224, 3),
            "observation/joint_position": random.random(7),
            "observation/gripper_position": random.random(1),
            "prompt": "do something",
        }
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    return {
        "state": np.ones(14),
        "images": {camera: image(3, 224, 224) for camera in cameras},
        "prompt": "do something",
    }
