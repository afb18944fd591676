"""The real simulator: placement, closed loop, demonstrations."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.libero.marks import needs_simulator
from vlad_libero.assets.writer import asset_files
from vlad_libero.demos.generate import main as generate_demos
from vlad_libero.errors import LiberoError
from vlad_libero.evaluation.episode import run_episode
from vlad_libero.evaluation.playing import Playing
from vlad_libero.evaluation.protocol import Protocol
from vlad_libero.expert import Expert
from vlad_libero.simulator.cameras import LIGHT
from vlad_libero.simulator.package import choose_assets
from vlad_libero.simulator.simulator import Simulator, Vector, episode_seed
from vlad_libero.simulator.suites import suite_tasks

pytestmark = needs_simulator

BOWL = "akita_black_bowl_1"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator(suite_tasks("libero_spatial")[0], choose_assets("procedural"), LIGHT)
    yield simulator
    simulator.close()


def test_the_suite_is_the_benchmarks() -> None:
    tasks = suite_tasks("libero_spatial")
    assert len(tasks) == 10
    assert tasks[4].prompt == (
        "pick up the black bowl in the top drawer of the wooden cabinet and place it on the plate"
    )
    for task in tasks:
        assert task.initial_states().shape == (50, 92)
        assert task.bddl_file.is_file()


def test_a_seed_decides_where_everything_stands(simulator: Simulator) -> None:
    def placed(seed: int) -> Vector:
        simulator.place(seed)
        names = (*simulator.objects, "wooden_cabinet_1", "flat_stove_1")
        return np.concatenate([simulator.position(name) for name in names])

    first, other = placed(1), placed(2)
    assert (placed(1) == first).all()
    assert (first != other).any()


def test_places_cover_the_initial_states(simulator: Simulator) -> None:
    fixed = simulator.task.initial_states()[:, 10:12]
    drawn = []
    for seed in range(60):
        simulator.place(seed)
        drawn.append(simulator.position(BOWL)[:2])
    assert (np.min(drawn, axis=0) < fixed.min(axis=0)).all()
    assert (np.max(drawn, axis=0) > fixed.max(axis=0)).all()


def test_the_initial_state_comes_last(simulator: Simulator) -> None:
    state = simulator.task.initial_states()[3]
    simulator.restore(state, seed=5)
    assert simulator.position(BOWL) == pytest.approx(state[10:13])
    with pytest.raises(LiberoError, match="takes states of 92 numbers"):
        simulator.restore(state[:-1], seed=5)


def test_pictures_are_mirrored_as_policies_expect(simulator: Simulator) -> None:
    simulator.restore(simulator.task.initial_states()[0], seed=5)
    agent, wrist = simulator.images()
    assert agent.shape == wrist.shape == (224, 224, 3)
    assert (agent == simulator.view("agentview")[:, ::-1]).all()
    assert agent.std() > 20


def test_the_state_is_what_openpis_client_sends(simulator: Simulator) -> None:
    simulator.restore(simulator.task.initial_states()[0], seed=5)
    simulator.wait(1)
    observation = simulator._env._get_observations(force_update=True)
    from robosuite.utils.transform_utils import quat2axisangle

    fingers = observation["robot0_gripper_qpos"]
    turn = quat2axisangle(observation["robot0_eef_quat"].copy())
    expected = np.concatenate([observation["robot0_eef_pos"], turn, fingers])
    assert simulator.state() == pytest.approx(expected, abs=1e-6)


class Replay:
    """Answers the n-th request with the expert's actions of that time."""

    def __init__(self, actions: list[Vector], replan_steps: int) -> None:
        self._actions, self._replan = actions, replan_steps
        self.requests: list[dict[str, Any]] = []

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        start = len(self.requests) * self._replan
        self.requests.append(observation)
        rows = self._actions[start : start + 10]
        return {"actions": np.stack(rows + [self._actions[-1]] * (10 - len(rows)))}


def test_an_episode_ends_with_success_when_the_goal_is_reached(simulator: Simulator) -> None:
    protocol, trial = Protocol(replan_steps=5), 4
    simulator.restore(simulator.task.initial_states()[trial], episode_seed("eval", protocol.seed, 0, trial))
    simulator.wait(protocol.wait_steps)
    expert, actions, done = Expert(simulator), [], False
    while not done and len(actions) < protocol.step_limit:
        actions.append(expert.act())
        done = simulator.step(actions[-1])
    assert done

    policy = Replay(actions, protocol.replan_steps)
    result = run_episode(simulator, policy, protocol, Playing(protocol.replan_steps), trial)
    assert (result.success, result.steps, result.wrong_object) == (True, len(actions), False)
    assert result.requests == -(-len(actions) // 5)
    assert policy.requests[0]["prompt"] == simulator.task.prompt
    seeds = [request["vlad/seed"] for request in policy.requests]
    assert len(set(seeds)) == len(seeds)


def test_a_policy_that_does_nothing_fails_in_time(simulator: Simulator) -> None:
    policy = Replay([np.zeros(7)], 5)
    result = run_episode(simulator, policy, Protocol(max_steps=12), Playing(5), trial=0)
    assert (result.success, result.steps, result.requests) == (False, 12, 3)


def test_demonstrations_become_a_dataset(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "demos"
    arguments = [
        "--out",
        str(out),
        "--tasks",
        "2",
        "--per-task",
        "1",
        "--workers",
        "1",
        "--assets",
        "procedural",
    ]
    assert generate_demos(arguments) == 0
    assert (out / "meta/info.json").is_file()
    assert not out.with_name("demos.parts").exists()
    assert generate_demos(arguments) == 2, "an existing dataset is left alone"


def test_the_simulator_loads_every_file_that_is_drawn() -> None:
    import mujoco

    directory = choose_assets("procedural").directory
    for name in asset_files():
        if name.endswith(".xml"):
            assert mujoco.MjModel.from_xml_path(str(directory / name)).nbody > 1
