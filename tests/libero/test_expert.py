"""The expert on a table where hands obey at once and bowls stick to closed fingers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from vlad_libero.errors import LiberoError
from vlad_libero.expert import Expert, Phase, rotation_between
from vlad_libero.simulator.simulator import Hand

Vector = npt.NDArray[np.float64]

BOWL, PLATE, OTHER = "akita_black_bowl_1", "plate_1", "akita_black_bowl_2"


class Table:
    """A scene without forces."""

    goal: tuple[tuple[str, ...], ...] = (("on", BOWL, PLATE),)

    def __init__(self, **positions: tuple[float, float, float]) -> None:
        self.positions = {name: np.array(position) for name, position in positions.items()}
        self._hand = np.array([-0.2, 0.0, 1.17])
        self._rotation = np.diag([1.0, -1.0, -1.0])
        self._opening = 0.08
        self._held: str | None = None

    @property
    def objects(self) -> tuple[str, ...]:
        return tuple(self.positions)

    def hand(self) -> Hand:
        return Hand(self._hand.copy(), self._rotation.copy(), self._opening)

    def position(self, name: str) -> Vector:
        if name not in self.positions:
            raise LiberoError(f"there is no '{name}'")
        return self.positions[name].copy()

    def drop(self) -> None:
        """What the hand holds slips out."""
        self._held, self._opening = None, 0.001

    def step(self, action: Vector) -> None:
        moved = action[:3] * 0.02
        self._hand += moved
        if action[6] < 0:
            self._opening, self._held = 0.08, None
        elif self._held is None:
            near = [name for name in self.objects if self._is_at_rim(name)]
            self._held = near[0] if near else None
            self._opening = 0.007 if near else 0.0
        if self._held is not None:
            lowest = (
                0.905
                if np.linalg.norm((self.positions[self._held] - self.positions[PLATE])[:2]) < 0.05
                else 0.9
            )
            self.positions[self._held] += moved
            self.positions[self._held][2] = max(self.positions[self._held][2], lowest)

    def _is_at_rim(self, name: str) -> bool:
        away = self._hand - self.positions[name]
        return 0.04 < float(np.linalg.norm(away[:2])) < 0.06 and 0.02 < away[2] < 0.05


def _table() -> Table:
    return Table(**{BOWL: (0.0, -0.1, 0.9), PLATE: (0.06, 0.2, 0.9), OTHER: (0.0, 0.05, 0.9)})


def _run(table: Table, steps: int = 220) -> list[Phase]:
    expert, phases = Expert(table), []
    for _ in range(steps):
        action = expert.act()
        assert np.abs(action).max() <= 1
        table.step(action)
        phases.append(expert.phase)
        if expert.phase is Phase.RETREAT:
            break
    return phases


def test_the_goals_bowl_ends_on_the_plate_and_the_other_stays() -> None:
    table = _table()
    other = table.position(OTHER)
    phases = _run(table)
    assert list(dict.fromkeys(phases)) == list(Phase)
    assert np.linalg.norm((table.position(BOWL) - table.position(PLATE))[:2]) < 0.02
    assert (table.position(OTHER) == other).all()


def test_a_bowl_that_slips_is_taken_again() -> None:
    table = _table()
    expert, dropped = Expert(table), False
    for _ in range(300):
        table.step(expert.act())
        if expert.phase is Phase.CARRY and not dropped:
            table.drop()
            table.positions[BOWL][2] = 0.9
            dropped = True
        if expert.phase is Phase.RETREAT:
            break
    assert dropped
    assert np.linalg.norm((table.position(BOWL) - table.position(PLATE))[:2]) < 0.02


def test_the_finger_goes_where_there_is_room() -> None:
    table = _table()
    expert = Expert(table)
    for _ in range(60):
        table.step(expert.act())
        if expert.phase is Phase.CLOSE:
            break
    # The other bowl stands at larger y.
    assert table.hand().position[1] < table.position(BOWL)[1]


def test_a_goal_that_is_not_one_object_on_another_is_refused() -> None:
    table = _table()
    table.goal = (("turnon", "flat_stove_1"),)
    with pytest.raises(LiberoError, match="puts one object on another"):
        Expert(table)


def test_rotations_are_undone() -> None:
    angle = 0.3
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert rotation_between(np.eye(3), turned) == pytest.approx(np.array([0, 0, angle]))
    assert rotation_between(turned, np.eye(3)) == pytest.approx(np.array([0, 0, -angle]))
    assert rotation_between(turned, turned) == pytest.approx(np.zeros(3))
