"""Random observations in the shape of each robot, for trying a server out."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np

_PROMPT = "do something"


def random_observation(environment: str, random: np.random.Generator) -> dict[str, Any]:
    """Make one request as the robots of `environment` send it.

    Args:
        environment: a name of `ENVIRONMENTS`.

    Raises:
        ValueError: for an unknown environment.
    """
    if environment not in _OBSERVATIONS:
        raise ValueError(f"unknown environment '{environment}'; known: {', '.join(ENVIRONMENTS)}")
    return _OBSERVATIONS[environment](random)


def _image(random: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    return random.integers(256, size=shape, dtype=np.uint8)


def _aloha(random: np.random.Generator) -> dict[str, Any]:
    cameras = ("cam_high", "cam_low", "cam_left_wrist", "cam_right_wrist")
    return {
        "state": np.ones(14),
        "images": {camera: _image(random, 3, 224, 224) for camera in cameras},
        "prompt": _PROMPT,
    }


def _droid(random: np.random.Generator) -> dict[str, Any]:
    return {
        "observation/exterior_image_1_left": _image(random, 224, 224, 3),
        "observation/wrist_image_left": _image(random, 224, 224, 3),
        "observation/joint_position": random.random(7),
        "observation/gripper_position": random.random(1),
        "prompt": _PROMPT,
    }


def _libero(random: np.random.Generator) -> dict[str, Any]:
    return {
        "observation/state": random.random(8),
        "observation/image": _image(random, 224, 224, 3),
        "observation/wrist_image": _image(random, 224, 224, 3),
        "prompt": _PROMPT,
    }


_OBSERVATIONS: dict[str, Callable[[np.random.Generator], dict[str, Any]]] = {
    "ALOHA": _aloha,
    "ALOHA_SIM": _aloha,
    "DROID": _droid,
    "LIBERO": _libero,
}

ENVIRONMENTS = tuple(_OBSERVATIONS)
"""Names as in `serve_policy --env`."""
