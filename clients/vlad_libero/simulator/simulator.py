"""One task of LIBERO, step by step."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Sequence

import numpy as np
import numpy.typing as npt

from vlad_libero.errors import LiberoError
from vlad_libero.simulator.cameras import Cameras, Image, Rendering
from vlad_libero.simulator.package import AssetTree, import_libero
from vlad_libero.simulator.physics import control_step
from vlad_libero.simulator.suites import Task

Vector = npt.NDArray[np.float64]

ACTION_WIDTH = 7
# Hand still, gripper open: what the benchmark executes while objects settle.
IDLE_ACTION: Vector = np.array([0, 0, 0, 0, 0, 0, -1], np.float64)

_ARM_NOISE = 0.02


@dataclasses.dataclass(frozen=True)
class Hand:
    """Where the gripper is.

    Attributes:
        position: [3], metres, in the world.
        rotation: [3, 3]; its third column points along the fingers.
        opening: distance of the fingers, metres.
    """

    position: Vector
    rotation: Vector
    opening: float


class Simulator:
    """A scene of one task: place, step, look.

    Not thread safe; meant to be one of several processes, since placement draws from numpy's global
    generator. Building one takes seconds, its first in a process longer.

    Raises:
        SimulatorMissingError: where the simulator cannot be imported.
    """

    def __init__(self, task: Task, assets: AssetTree, rendering: Rendering | None) -> None:
        """Build the scene; with `rendering` None there are no pictures, and no graphics are needed."""
        wrapper = import_libero(assets)
        self.task = task
        self._control = wrapper.ControlEnv(
            bddl_file_name=str(task.bddl_file),
            has_offscreen_renderer=False,
            use_camera_obs=False,
            hard_reset=False,
            horizon=2**31,
        )
        self._env: Any = self._control.env
        self._cameras = None if rendering is None else Cameras(self._model, rendering)

    @property
    def goal(self) -> tuple[tuple[str, ...], ...]:
        """The goal's predicates, such as `("on", "akita_black_bowl_1", "plate_1")`."""
        return tuple(tuple(state) for state in self._env.parsed_problem["goal_state"])

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the objects that can be moved."""
        return tuple(self._env.objects_dict)

    def place(self, seed: int) -> None:
        """Put everything to places drawn from `seed`, the arm near its usual pose."""
        self._reset(seed)
        data, robot = self._env.sim.data, self._env.robots[0]
        noise = np.random.default_rng(seed).normal(0, _ARM_NOISE, len(robot._ref_joint_pos_indexes))
        data.qpos[robot._ref_joint_pos_indexes] += noise
        self._env.sim.forward()

    def restore(self, state: Vector, seed: int) -> None:
        """Put everything movable into a fixed initial state; fixtures stand where `seed` puts them.

        The state comes last: a reset after it would throw it away.

        Args:
            state: one row of `Task.initial_states`.

        Raises:
            LiberoError: for a state of another scene.
        """
        expected = 1 + self._model.nq + self._model.nv
        if state.shape != (expected,):
            raise LiberoError(f"'{self.task.name}' takes states of {expected} numbers, not {state.shape}")
        self._reset(seed)
        self._control.set_init_state(state)

    def step(self, action: Sequence[float] | Vector) -> bool:
        """Execute one action for 1/20 s; returns True where the goal is reached.

        Args:
            action: [7] in -1..1: translation (times 5 cm), rotation vector (times 0.5 rad), gripper
                (-1 opens, 1 closes).
        """
        control_step(self._env, np.clip(np.asarray(action, np.float64), -1, 1))
        return bool(self._env._check_success())

    def wait(self, steps: int) -> None:
        """Let objects settle."""
        for _ in range(steps):
            self.step(IDLE_ACTION)

    def images(self) -> tuple[Image, Image]:
        """The pictures for the policy: agent view and wrist; see `Cameras.observe`."""
        return self._drawing().observe(self._env.sim.data._data)

    def view(self, camera: str) -> Image:
        """An upright picture of any camera."""
        return self._drawing().view(self._env.sim.data._data, camera)

    def state(self) -> Vector:
        """The robot state that LIBERO policies get, [8]: position, rotation vector, finger joints."""
        data, robot = self._env.sim.data, self._env.robots[0]
        x, y, z, w = _quaternion(data.get_body_xquat(robot.robot_model.eef_name))
        fingers = [data.qpos[index] for index in robot._ref_gripper_joint_pos_indexes]
        position = data.site_xpos[robot.eef_site_id]
        return np.concatenate([position, rotation_vector(x, y, z, w), fingers])

    def hand(self) -> Hand:
        """Where the gripper is, for a scripted expert."""
        data, robot = self._env.sim.data, self._env.robots[0]
        fingers = [float(data.qpos[index]) for index in robot._ref_gripper_joint_pos_indexes]
        rotation = np.array(data.get_body_xmat(robot.robot_model.eef_name)).reshape(3, 3)
        return Hand(np.array(data.site_xpos[robot.eef_site_id]), rotation, fingers[0] - fingers[1])

    def position(self, name: str) -> Vector:
        """Where an object's or a fixture's origin is, [3], metres.

        Raises:
            LiberoError: for a name that the scene does not have.
        """
        try:
            body = self._env.obj_body_id[name]
        except KeyError:
            raise LiberoError(f"there is no '{name}' in '{self.task.name}'") from None
        return np.array(self._env.sim.data.body_xpos[body])

    def close(self) -> None:
        """Give memory and graphics back."""
        if self._cameras is not None:
            self._cameras.close()
        self._control.close()

    @property
    def _model(self) -> Any:
        return self._env.sim.model._model

    def _drawing(self) -> Cameras:
        if self._cameras is None:
            raise LiberoError("this simulator was built without pictures")
        return self._cameras

    def _reset(self, seed: int) -> None:
        # LIBERO places objects relative to where fixtures stand in the model's file, and without
        # loading that again it would take where they stood last.
        for fixture in self._env.fixtures_dict.values():
            body = self._env.sim.model.body_name2id(fixture.root_body)
            self._model.body_pos[body] = 0
            self._model.body_quat[body] = (1, 0, 0, 0)
        np.random.seed(seed)
        self._control.reset()


def episode_seed(*parts: object) -> int:
    """A seed of 32 bits from anything that names an episode."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def rotation_vector(x: float, y: float, z: float, w: float) -> Vector:
    """The rotation vector [3], radians, of a unit quaternion, as openpi's LIBERO client computes it."""
    w = min(max(w, -1.0), 1.0)
    sine = float(np.sqrt(1 - w * w))
    if np.isclose(sine, 0):
        return np.zeros(3)
    return np.asarray(np.array([x, y, z]) * 2 * np.arccos(w) / sine)


def _quaternion(wxyz: Any) -> tuple[float, float, float, float]:
    w, x, y, z = (float(part) for part in wxyz)
    return x, y, z, w
