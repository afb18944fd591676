"""Instructions, and initial states that cannot run code."""

from __future__ import annotations

import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from vlad_libero.arguments import index_list
from vlad_libero.errors import LiberoError, SimulatorMissingError
from vlad_libero.simulator import suites
from vlad_libero.simulator.simulator import episode_seed, rotation_vector
from vlad_libero.simulator.suites import Task, prompt_of


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("put_the_bowl_on_the_stove", "put the bowl on the stove"),
        (
            "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it",
            "turn on the stove and put the moka pot on it",
        ),
        ("LIVING_ROOM_SCENE2_put_both_the_alphabet_soup", "put both the alphabet soup"),
    ],
)
def test_prompts_come_from_file_names(name: str, prompt: str) -> None:
    assert prompt_of(name) == prompt


@pytest.fixture
def task(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(suites, "libero_directory", lambda: tmp_path)
    (tmp_path / "init_files/libero_spatial").mkdir(parents=True)
    return Task("libero_spatial", 0, "some_task", "some task")


def _write(task: Task, content: object) -> None:
    path = suites.libero_directory() / "init_files" / task.suite / f"{task.name}.pruned_init"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))


def test_initial_states_are_read_without_torch(task: Task) -> None:
    states = np.arange(12.0).reshape(3, 4)
    _write(task, states)
    assert (task.initial_states() == states).all()


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


def test_initial_states_cannot_run_code(task: Task) -> None:
    _write(task, _Harmful())
    with pytest.raises(LiberoError, match="unexpected content"):
        task.initial_states()


def test_missing_initial_states_are_named(task: Task) -> None:
    with pytest.raises(LiberoError, match=r"some_task\.pruned_init holds no initial states"):
        task.initial_states()


def test_a_missing_simulator_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SimulatorMissingError, match=r"pip install 'vlad\[libero\]'"):
        suites.suite_tasks("libero_spatial")


def test_index_lists_take_ranges() -> None:
    assert index_list("5-7,0,2,6") == (0, 2, 5, 6, 7)


def test_seeds_of_evaluation_and_demonstrations_differ() -> None:
    evaluation = {episode_seed("eval", 7, task, trial) for task in range(10) for trial in range(50)}
    demonstrations = {
        episode_seed("demo", "libero_spatial", 1, task, number, 0)
        for task in range(10)
        for number in range(200)
    }
    assert len(evaluation) == 500
    assert not evaluation & demonstrations


def test_rotation_vectors_are_openpis() -> None:
    half = np.sqrt(0.5)
    assert rotation_vector(half, 0, 0, half) == pytest.approx([np.pi / 2, 0, 0])
    assert rotation_vector(0, 0, 0, 1.0000001) == pytest.approx([0, 0, 0])
    # openpi turns the long way round for negative w.
    assert rotation_vector(half, 0, 0, -half) == pytest.approx([3 * np.pi / 2, 0, 0])
