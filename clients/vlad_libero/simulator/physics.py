"""One control step of robosuite without its repeated work."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

import numpy as np
import numpy.typing as npt


def control_step(env: Any, action: npt.NDArray[np.float64]) -> None:
    """Advance the simulation by one control step of `env`, a robosuite environment.

    robosuite computes the whole state twice more than the integrator needs, in each substep: before
    the controller and inside it. Here the integrator's first half serves the controller as well.

    Args:
        action: float [action width], in [-1, 1].
    """
    import mujoco

    model, data = env.sim.model._model, env.sim.data._data
    substeps = round(env.control_timestep / env.model_timestep)
    with _without_forward(env.sim):
        for substep in range(substeps):
            mujoco.mj_step1(model, data)
            env._pre_action(action, substep == 0)
            mujoco.mj_step2(model, data)
    env.timestep += 1
    env.cur_time += env.control_timestep
    env._post_process()


@contextlib.contextmanager
def _without_forward(simulation: Any) -> Iterator[None]:
    simulation.forward = _nothing
    try:
        yield
    finally:
        del simulation.forward


def _nothing() -> None:
    pass
