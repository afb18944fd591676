"""How often the scripted expert succeeds from the suite's fixed initial states, without noise.

libero_expert.py [--tasks 0-9] [--trials 12] [--workers N]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import sys

from vlad_libero.arguments import index_list
from vlad_libero.evaluation.statistics import wilson_interval
from vlad_libero.expert import Expert
from vlad_libero.processes import in_processes
from vlad_libero.simulator.package import AssetTree, choose_assets
from vlad_libero.simulator.simulator import Simulator, episode_seed
from vlad_libero.simulator.suites import MAX_STEPS, suite_tasks

SUITE = "libero_spatial"
_WAIT_STEPS = 10


@dataclasses.dataclass(frozen=True)
class Trial:
    """An episode to run: the task, the initial state, and what is drawn."""

    assets: AssetTree
    task: int
    number: int


def run(trial: Trial) -> tuple[int, int | None]:
    """The task, and the steps that it took; None where it failed."""
    simulator = _simulator(trial.assets, trial.task)
    state = simulator.task.initial_states()[trial.number]
    simulator.restore(state, episode_seed(7, trial.task, trial.number))
    simulator.wait(_WAIT_STEPS)
    expert = Expert(simulator)
    for step in range(MAX_STEPS[SUITE]):
        if simulator.step(expert.act()):
            return trial.task, step + 1
    return trial.task, None


@functools.lru_cache(maxsize=1)
def _simulator(assets: AssetTree, task: int) -> Simulator:
    return Simulator(suite_tasks(SUITE)[task], assets, None)


def main() -> int:
    """Print a line per task and one for all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=index_list, default=tuple(range(10)))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    assets = choose_assets("procedural")
    trials = [Trial(assets, task, number) for task in options.tasks for number in range(options.trials)]
    results = list(in_processes(run, trials, options.workers))
    for task in options.tasks:
        steps = [count for other, count in results if other == task]
        done = [count for count in steps if count is not None]
        mean = f"{statistics.mean(done):.1f}" if done else "-"
        print(f"task {task}: {len(done)}/{len(steps)}, {mean} steps")
    successes = sum(count is not None for _, count in results)
    low, high = wilson_interval(successes, len(results))
    print(f"all: {successes}/{len(results)}, 95 % interval {low:.3f} to {high:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
