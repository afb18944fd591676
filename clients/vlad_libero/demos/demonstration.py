"""One demonstration: the expert on a scene of its own, disturbed while it works."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time

import numpy as np
import numpy.typing as npt

from vlad_libero.dataset.episode import EpisodeRecorder, save_episode
from vlad_libero.errors import LiberoError
from vlad_libero.expert import Expert, Phase
from vlad_libero.simulator.appearance import Appearance, AppearanceRange
from vlad_libero.simulator.cameras import RENDERINGS
from vlad_libero.simulator.package import AssetTree
from vlad_libero.simulator.simulator import Simulator, episode_seed
from vlad_libero.simulator.suites import suite_tasks

_WAIT_STEPS = 10
_MAX_STEPS = 220
# Where a push does no harm that the expert cannot repair before it grasps or lets go.
_DISTURBED = frozenset({Phase.APPROACH, Phase.DESCEND, Phase.CARRY})


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """How demonstrations are made.

    Attributes:
        assets: tree that is drawn.
        suite: of LIBERO; the expert knows `libero_spatial`.
        seed: of everything drawn; scenes are drawn afresh, never taken from the fixed initial states.
        noise: strength of what is added to the executed translation, in sizes of an action; the
            recorded action is the expert's own, so that a policy learns to correct.
        memory: share of the disturbance that stays from step to step, 0 to 1.
        frames_after: recorded after the goal is reached, while the expert lets go.
        attempts: scenes that may be tried for one demonstration.
        appearance: how different scenes may look.
        rendering: name of the `Rendering`.
    """

    assets: AssetTree
    suite: str = "libero_spatial"
    seed: int = 1
    noise: float = 0.15
    memory: float = 0.7
    frames_after: int = 6
    attempts: int = 4
    appearance: AppearanceRange = dataclasses.field(default_factory=AppearanceRange)
    rendering: str = "light"

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1 or not 0 <= self.memory < 1:
            raise LiberoError(f"noise must be in 0..1 and memory in 0..1, not {self.noise}, {self.memory}")
        if self.attempts < 1 or self.frames_after < 0:
            raise LiberoError("attempts must be at least 1, frames_after not negative")
        if self.rendering not in RENDERINGS:
            raise LiberoError(f"rendering must be one of {', '.join(RENDERINGS)}, not '{self.rendering}'")


@dataclasses.dataclass(frozen=True)
class DemoJob:
    """A demonstration to make.

    Attributes:
        settings: shared by all.
        task: index in the suite.
        number: of the demonstration within its task.
        path: file that the episode goes to.
    """

    settings: DemoSettings
    task: int
    number: int
    path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class DemoBatch:
    """Demonstrations of one task that a process makes in a row, since building its scene takes seconds.

    Attributes:
        jobs: all of one task.
        end_time: as of `time.time()`, after which no further one is begun; None for no end.
    """

    jobs: tuple[DemoJob, ...]
    end_time: float | None = None


@dataclasses.dataclass(frozen=True)
class DemoOutcome:
    """What came of a job.

    Attributes:
        task: index in the suite.
        number: of the demonstration.
        frames: recorded; 0 where no attempt succeeded.
        attempts: scenes that were tried.
        seconds: they took.
    """

    task: int
    number: int
    frames: int
    attempts: int
    seconds: float


def make_batch(batch: DemoBatch) -> list[DemoOutcome]:
    """Make the demonstrations of a batch, as many as the time allows; runs in any process."""
    outcomes = []
    for job in batch.jobs:
        if batch.end_time is not None and time.time() >= batch.end_time:
            break
        outcomes.append(make_demonstration(job))
    return outcomes


def make_demonstration(job: DemoJob) -> DemoOutcome:
    """Try scenes until the expert succeeds, and keep that episode in a file."""
    started = time.monotonic()
    simulator, appearance = _scene(job.settings, job.task)
    for attempt in range(job.settings.attempts):
        seed = episode_seed("demo", job.settings.suite, job.settings.seed, job.task, job.number, attempt)
        recorder = demonstrate(simulator, appearance, job.settings, seed)
        if recorder is not None:
            episode = recorder.episode()
            save_episode(job.path, episode)
            seconds = time.monotonic() - started
            return DemoOutcome(job.task, job.number, len(episode.states), attempt + 1, seconds)
    return DemoOutcome(job.task, job.number, 0, job.settings.attempts, time.monotonic() - started)


def demonstrate(
    simulator: Simulator, appearance: Appearance, settings: DemoSettings, seed: int
) -> EpisodeRecorder | None:
    """One attempt on the scene of `seed`; None where the goal is not reached."""
    rng = np.random.default_rng(seed)
    simulator.place(seed)
    appearance.draw(rng)
    simulator.wait(_WAIT_STEPS)
    expert = Expert(simulator)
    recorder = EpisodeRecorder(
        simulator.task.prompt, {"task": simulator.task.index, "seed": seed, "noise": settings.noise}
    )
    push: npt.NDArray[np.float64] = np.zeros(3)
    left = None  # Frames still to record once the goal is reached.
    for _ in range(_MAX_STEPS):
        images, state, action = simulator.images(), simulator.state(), expert.act()
        recorder.add(images, state, action)
        executed = action.copy()
        push = settings.memory * push + rng.normal(0, settings.noise, 3)
        if expert.phase in _DISTURBED:
            executed[:3] += push
        done = simulator.step(executed)
        left = settings.frames_after if done and left is None else left
        if left is not None:
            if left == 0:
                return recorder
            left -= 1
    return None


@functools.lru_cache(maxsize=1)
def _scene(settings: DemoSettings, task: int) -> tuple[Simulator, Appearance]:
    """The scene that this process works on; demonstrations of a task come one after another."""
    simulator = Simulator(suite_tasks(settings.suite)[task], settings.assets, RENDERINGS[settings.rendering])
    return simulator, Appearance(simulator, settings.appearance)
