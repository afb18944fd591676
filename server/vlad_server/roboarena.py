"""The dialect of RoboArena's policy servers, spoken on the same port: requests with the key `endpoint`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlad_configs.environments import Environment
from vlad_configs.errors import ObservationError

ENDPOINT_KEY = "endpoint"
ENDPOINTS = ("infer", "reset")
RESET_REPLY = "reset successful"
"""A text frame, the one that is no error."""

_CAMERA_NAMES = {"observation/exterior_image_0_left": "observation/exterior_image_1_left"}
"""RoboArena counts cameras from 0, openpi's DROID from 1."""


def is_roboarena(request: Mapping[str, Any]) -> bool:
    """True for a request of this dialect."""
    return ENDPOINT_KEY in request


def endpoint_of(request: Mapping[str, Any]) -> str:
    """What the request asks for.

    Raises:
        ObservationError: for an endpoint that there is not.
    """
    endpoint = request[ENDPOINT_KEY]
    if not isinstance(endpoint, str) or endpoint not in ENDPOINTS:
        raise ObservationError(ENDPOINT_KEY, f"one of {', '.join(ENDPOINTS)}", f"{endpoint!r:.64}")
    return endpoint


def observation_of(request: Mapping[str, Any], robot: Environment) -> dict[str, Any]:
    """The observation of an `infer` request under the names of the environment."""
    observation = dict(request)
    del observation[ENDPOINT_KEY]
    known = robot.request_keys
    for theirs, ours in _CAMERA_NAMES.items():
        if ours in known and theirs in observation:
            # Where both are there, camera 0 is the first external camera, and camera 1 the second.
            observation[ours] = observation.pop(theirs)
    return observation


def metadata_for(robot: Environment, delta_mask: object) -> dict[str, Any]:
    """What RoboArena's clients read of the metadata frame; nothing for robots that it does not have.

    Args:
        delta_mask: of the policy's metadata; None where the checkpoint predicts joint velocities.
    """
    if robot.name != "DROID":
        return {}
    return {
        "image_resolution": [224, 224],
        "needs_wrist_camera": True,
        "n_external_cameras": 1,
        "needs_stereo_camera": False,
        "needs_session_id": False,
        "action_space": "joint_velocity" if delta_mask is None else "joint_position",
    }
