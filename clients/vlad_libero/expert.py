"""A scripted expert that puts a bowl on the plate; sees positions, not pictures."""

from __future__ import annotations

import dataclasses
import enum
from typing import Protocol, Sequence

import numpy as np
import numpy.typing as npt

from vlad_libero.errors import LiberoError
from vlad_libero.simulator.simulator import ACTION_WIDTH, Hand

Vector = npt.NDArray[np.float64]

# One action of size 1 asks for this much, metres and radians.
_STEP_M, _STEP_RAD = 0.05, 0.5
_OPEN, _CLOSED = -1.0, 1.0
_STILL_STEPS, _STILL_M = 6, 0.002

# The hand points down; its fingers open along y, or along x with the hand turned by 90 degrees.
_FINGERS_ALONG_Y: Vector = np.array([[1, 0, 0], [0, -1, 0], [0, 0, -1]], np.float64)
_FINGERS_ALONG_X: Vector = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]], np.float64)


class Phase(enum.Enum):
    """What the expert is doing."""

    APPROACH = "approach"
    DESCEND = "descend"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    LOWER = "lower"
    RELEASE = "release"
    RETREAT = "retreat"


class Scene(Protocol):
    """What the expert looks at; `Simulator` is one."""

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]: ...

    @property
    def objects(self) -> tuple[str, ...]: ...

    def hand(self) -> Hand: ...

    def position(self, name: str) -> Vector: ...


@dataclasses.dataclass(frozen=True)
class ExpertSettings:
    """How it grasps; metres and control steps.

    Attributes:
        rim_radius: from the bowl's axis to the middle of its wall at the height of the grasp.
        rim_height: of the grasp over the bowl's origin.
        hover: height over the grasp from which the hand goes down.
        travel_height: of the hand over the table while it is far from the bowl.
        lift: how high the bowl is lifted before it is carried.
        clearance: of the bowl over the plate while it is carried.
        close_steps: until the fingers hold.
        open_steps: until they let go.
        gain: action per step of error.
    """

    rim_radius: float = 0.051
    rim_height: float = 0.034
    hover: float = 0.10
    travel_height: float = 1.17
    lift: float = 0.13
    clearance: float = 0.10
    close_steps: int = 8
    open_steps: int = 6
    gain: float = 3.0


@dataclasses.dataclass(frozen=True)
class Grasp:
    """A place on the rim and the hand's direction.

    Attributes:
        offset: [3], from the bowl's origin to the point between the fingers.
        rotation: [3, 3], of the hand.
    """

    offset: Vector
    rotation: Vector


class Expert:
    """Picks the goal's bowl up by its rim and puts it on the plate; one instance an episode.

    Looks at the scene at each step, so a disturbed hand or a slipped bowl is corrected.

    Raises:
        LiberoError: for a task whose goal is not one object on another.
    """

    def __init__(self, scene: Scene, settings: ExpertSettings | None = None) -> None:
        if len(scene.goal) != 1 or len(scene.goal[0]) != 3 or scene.goal[0][0] != "on":
            raise LiberoError(f"the expert puts one object on another, the goal here is {scene.goal}")
        self._scene = scene
        self._settings = settings or ExpertSettings()
        _, self._bowl, self._plate = scene.goal[0]
        self._grasp = choose_grasp(scene, self._bowl, self._settings)
        self._phase = Phase.APPROACH
        self._steps_in_phase = 0
        self._lowest: list[float] = []  # Heights of the hand since the phase began.
        self._held = np.zeros(3)  # Where the hand was when the phase began that holds it there.

    @property
    def phase(self) -> Phase:
        """What the last action belonged to."""
        return self._phase

    def act(self) -> Vector:
        """The action for the present scene, [7] in -1..1."""
        hand = self._scene.hand()
        bowl, plate = self._scene.position(self._bowl), self._scene.position(self._plate)
        if self._has_lost(hand):
            self._enter(Phase.APPROACH, hand)
            self._grasp = choose_grasp(self._scene, self._bowl, self._settings, deeper=0.004)
        self._advance(hand, bowl, plate)
        target, speed, grip = self._target(hand, bowl, plate)
        self._steps_in_phase += 1
        action = np.zeros(ACTION_WIDTH)
        gain = self._settings.gain
        action[:3] = np.clip((target - hand.position) / _STEP_M * gain, -speed, speed)
        turn = rotation_between(hand.rotation, self._grasp.rotation)
        action[3:6] = np.clip(turn / _STEP_RAD, -0.3, 0.3)
        action[6] = grip
        return np.clip(action, -1, 1)

    def _enter(self, phase: Phase, hand: Hand) -> None:
        self._phase, self._steps_in_phase, self._held = phase, 0, hand.position.copy()
        self._lowest.clear()

    def _has_lost(self, hand: Hand) -> bool:
        return self._phase in {Phase.LIFT, Phase.CARRY, Phase.LOWER} and hand.opening < 0.003

    def _stands_still(self, hand: Hand) -> bool:
        """True where the hand came no lower for some steps: what it holds has touched down."""
        lowest = self._lowest[-_STILL_STEPS:]
        self._lowest.append(float(hand.position[2]))
        return len(lowest) == _STILL_STEPS and lowest[0] - hand.position[2] < _STILL_M

    def _advance(self, hand: Hand, bowl: Vector, plate: Vector) -> None:
        """Enter the next phase where the present one has done its work."""
        steps, settings = self._steps_in_phase, self._settings
        away = hand.position - (bowl + self._grasp.offset)
        sideways = float(np.linalg.norm(away[:2]))
        if self._phase is Phase.APPROACH:
            if np.linalg.norm(away - _up(settings.hover)) < 0.015:
                self._enter(Phase.DESCEND, hand)
        elif self._phase is Phase.DESCEND:
            if (abs(away[2]) < 0.006 and sideways < 0.008) or steps > 30:
                self._enter(Phase.CLOSE, hand)
        elif self._phase is Phase.CLOSE:
            if steps > settings.close_steps:
                self._enter(Phase.LIFT, hand)
        elif self._phase is Phase.LIFT:
            if hand.position[2] > self._held[2] + settings.lift - 0.02:
                self._enter(Phase.CARRY, hand)
        elif self._phase is Phase.CARRY:
            if np.linalg.norm((bowl - plate)[:2]) < 0.012:
                self._enter(Phase.LOWER, hand)
        elif self._phase is Phase.LOWER:
            if bowl[2] - plate[2] < 0.012 or self._stands_still(hand):
                self._enter(Phase.RELEASE, hand)
        elif self._phase is Phase.RELEASE and steps > settings.open_steps:
            self._enter(Phase.RETREAT, hand)

    def _target(self, hand: Hand, bowl: Vector, plate: Vector) -> tuple[Vector, float, float]:
        """Where the hand shall be, how fast it may go there (size of an action), and the fingers."""
        settings, phase = self._settings, self._phase
        rim = bowl + self._grasp.offset
        if phase is Phase.APPROACH:
            target = rim + _up(settings.hover)
            if np.linalg.norm((hand.position - target)[:2]) > 0.05:
                target[2] = max(target[2], settings.travel_height)
            return target, 1.0, _OPEN
        if phase is Phase.DESCEND:
            return rim, 0.6, _OPEN
        if phase is Phase.CLOSE:
            return self._held, 1.0, _CLOSED
        if phase is Phase.LIFT:
            return self._held + _up(settings.lift), 1.0, _CLOSED
        above = hand.position - bowl
        if phase is Phase.CARRY:
            # Not lower than it was lifted: something may stand on the way.
            height = max(self._held[2], plate[2] + settings.clearance + above[2])
            return np.array([plate[0] + above[0], plate[1] + above[1], height]), 0.8, _CLOSED
        if phase is Phase.LOWER:
            return plate - _up(0.01) + above, 1.0 if bowl[2] - plate[2] > 0.08 else 0.4, _CLOSED
        if phase is Phase.RELEASE:
            return self._held, 1.0, _OPEN
        return self._held + _up(0.15), 1.0, _OPEN


def choose_grasp(scene: Scene, bowl: str, settings: ExpertSettings, deeper: float = 0.0) -> Grasp:
    """The side of the rim with the most room for a finger.

    A bowl in the open drawer is taken with the hand turned: along the drawer there is room for the
    fingers, towards its front and the cabinet there is not.

    Args:
        deeper: how much lower than usual, metres.
    """
    position = scene.position(bowl)
    height = settings.rim_height - deeper
    others = [scene.position(name)[:2] for name in scene.objects if name != bowl]
    cabinet = _cabinet(scene)
    if cabinet is not None and _is_in_drawer(position, cabinet):
        return Grasp(np.array([settings.rim_radius, 0, height]), _FINGERS_ALONG_X)
    if cabinet is not None and np.linalg.norm((position - cabinet)[:2]) < 0.35 and position[2] < 1.0:
        # The cabinet is large: next to it only the side away from it counts.
        others = [cabinet[:2]]
    offsets = [np.array([0, side * settings.rim_radius, height]) for side in (1, -1)]
    room = [_room(position + offset, others) for offset in offsets]
    return Grasp(offsets[int(room[1] > room[0] + 1e-6)], _FINGERS_ALONG_Y)


def rotation_between(present: Vector, wanted: Vector) -> Vector:
    """The rotation vector [3], radians, in world axes, that turns one rotation into another."""
    turn = wanted @ present.T
    cosine = np.clip((np.trace(turn) - 1) / 2, -1, 1)
    angle = float(np.arccos(cosine))
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    length = float(np.linalg.norm(axis))
    return axis * (angle / length) if length > 1e-6 else np.zeros(3)


def _up(height: float) -> Vector:
    return np.array([0.0, 0.0, height])


def _cabinet(scene: Scene) -> Vector | None:
    try:
        return scene.position("wooden_cabinet_1")
    except LiberoError:
        return None


def _is_in_drawer(bowl: Vector, cabinet: Vector) -> bool:
    return bool(np.linalg.norm((bowl - cabinet)[:2]) < 0.25 and 1.0 < bowl[2] < 1.09)


def _room(point: Vector, others: Sequence[Vector]) -> float:
    return min((float(np.linalg.norm(point[:2] - other)) for other in others), default=1.0)
