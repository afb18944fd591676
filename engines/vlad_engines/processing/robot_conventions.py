"""Joint conventions that differ between a robot's API and the models trained by Physical Intelligence.

ALOHA: some joints turn the other way, and the gripper is reported as a linear fraction where the
model wants an angle. Constants and formulas: openpi `policies/aloha_policy.py`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vlad_configs.environments import StateConversion

Array = npt.NDArray[np.float64]

_JOINT_SIGNS = np.array([1, -1, -1, 1, 1, 1, 1, 1, -1, -1, 1, 1, 1, 1], np.float64)
_GRIPPERS = [6, 13]

# Metres that the fingers are apart, in the Trossen driver's closed and open positions.
_FINGER_CLOSED, _FINGER_OPEN = 0.01844, 0.05800
_HORN_RADIUS, _ARM_LENGTH = 0.022, 0.036

# Radians of the gripper motor: range in which the model was trained, and the driver's own range.
_MODEL_CLOSED, _MODEL_OPEN = 0.5476, 1.6296
_DRIVER_CLOSED, _DRIVER_OPEN = -0.6213, 1.4910


def state_to_model(conversion: StateConversion, state: Array) -> Array:
    """Translate a robot state `[..., width]` into the model's convention; a new array."""
    if conversion == "none":
        return state.copy()
    converted = state * _JOINT_SIGNS
    converted[..., _GRIPPERS] = gripper_to_angular(converted[..., _GRIPPERS])
    return converted


def actions_to_robot(conversion: StateConversion, actions: Array) -> Array:
    """Translate model actions `[..., width]` into what the robot executes; a new array."""
    if conversion == "none":
        return actions.copy()
    converted = actions * _JOINT_SIGNS
    converted[..., _GRIPPERS] = gripper_from_angular(converted[..., _GRIPPERS])
    return converted


def actions_to_model(conversion: StateConversion, actions: Array) -> Array:
    """Undo `actions_to_robot` on `[..., width]`; a new array."""
    if conversion == "none":
        return actions.copy()
    converted = actions * _JOINT_SIGNS
    converted[..., _GRIPPERS] = gripper_command_to_angular(converted[..., _GRIPPERS])
    return converted


def gripper_to_angular(opening: Array) -> Array:
    """Gripper opening 0..1 of the robot to the model's normalised motor angle.

    Not the inverse of `gripper_from_angular`: states and commands use different scales.
    """
    distance = opening * (_FINGER_OPEN - _FINGER_CLOSED) + _FINGER_CLOSED
    with np.errstate(divide="ignore"):  # distance 0 is far outside the range and clipped below
        sine = (_HORN_RADIUS**2 + distance**2 - _ARM_LENGTH**2) / (2 * _HORN_RADIUS * distance)
    angle = np.arcsin(np.clip(sine, -1.0, 1.0))
    normalised: Array = (angle - _MODEL_CLOSED) / (_MODEL_OPEN - _MODEL_CLOSED)
    return normalised


def gripper_from_angular(angle: Array) -> Array:
    """The model's gripper angle to the opening that the robot is commanded to."""
    return (angle + _MODEL_CLOSED - _DRIVER_CLOSED) / (_DRIVER_OPEN - _DRIVER_CLOSED)


def gripper_command_to_angular(opening: Array) -> Array:
    """Undo `gripper_from_angular`: a commanded opening to the model's gripper angle."""
    return opening * (_DRIVER_OPEN - _DRIVER_CLOSED) + _DRIVER_CLOSED - _MODEL_CLOSED
