"""One closed-loop episode of a served policy."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from typing import Any, Callable, Mapping, Protocol

from vlad_libero.dataset.episode import EpisodeRecorder, save_episode
from vlad_libero.evaluation.playing import Player, Playing
from vlad_libero.evaluation.protocol import Protocol as EvaluationProtocol
from vlad_libero.evaluation.results import EpisodeResult
from vlad_libero.simulator.cameras import AGENT_CAMERA, Image
from vlad_libero.simulator.simulator import IDLE_ACTION, Simulator, Vector, episode_seed

# A frame this often is enough for a film.
FILM_STEPS = 2
_LIFTED_M = 0.05


class Policy(Protocol):
    """What answers requests; `vlad_client.WebsocketClientPolicy` is one."""

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class EpisodeOptions:
    """What to keep of an episode beside its result.

    Attributes:
        record: file for the episode's frames; None for none.
        film: called with each frame of the film; None for no film.
    """

    record: pathlib.Path | None = None
    film: Callable[[Image], None] | None = None


def run_episode(
    simulator: Simulator,
    policy: Policy,
    protocol: EvaluationProtocol,
    playing: Playing,
    trial: int,
    options: EpisodeOptions | None = None,
) -> EpisodeResult:
    """Run one trial of the simulator's task, from the suite's fixed initial state.

    Noise of the policy comes from seeds that depend on task, trial and request only, so that two
    runs with different backends start each chunk from the same noise.

    Raises:
        Exception: what the policy raises; an episode that could not be run is no failed one.
    """
    options = options or EpisodeOptions()
    started = time.monotonic()
    task = simulator.task
    states = task.initial_states()
    simulator.restore(states[trial % len(states)], episode_seed("eval", protocol.seed, task.index, trial))
    simulator.wait(protocol.wait_steps)
    requests = _Requests(simulator, policy, protocol.seed, trial)
    player = Player(playing, requests.infer, IDLE_ACTION)
    lifts = _LiftWatch(simulator)
    recorder = None
    if options.record is not None:
        recorder = EpisodeRecorder(task.prompt, {"task": task.index, "trial": trial, "seed": protocol.seed})
    done, steps = False, 0
    while not done and steps < protocol.step_limit:
        action = player.next()
        if recorder is not None:
            recorder.add(simulator.images(), simulator.state(), action)
        if options.film is not None and steps % FILM_STEPS == 0:
            options.film(simulator.view(AGENT_CAMERA))
        done = simulator.step(action)
        steps += 1
        lifts.look()
    if options.film is not None:
        options.film(simulator.view(AGENT_CAMERA))
    if recorder is not None and options.record is not None:
        save_episode(options.record, recorder.episode())
    return EpisodeResult(
        task=task.index,
        trial=trial,
        success=done,
        steps=steps,
        requests=len(requests.times_ms),
        wrong_object=lifts.wrong_object,
        infer_ms=statistics.median(requests.times_ms),
        seconds=time.monotonic() - started,
    )


class _Requests:
    """Observations as openpi's LIBERO client sends them."""

    def __init__(self, simulator: Simulator, policy: Policy, seed: int, trial: int) -> None:
        self._simulator, self._policy = simulator, policy
        self._seed, self._trial = seed, trial
        self.times_ms: list[float] = []

    def infer(self, extras: Mapping[str, Any]) -> Mapping[str, Any]:
        agent, wrist = self._simulator.images()
        task = self._simulator.task
        observation = {
            "observation/image": agent,
            "observation/wrist_image": wrist,
            "observation/state": self._simulator.state(),
            "prompt": task.prompt,
            "vlad/seed": episode_seed("noise", self._seed, task.index, self._trial, len(self.times_ms)),
            **extras,
        }
        began = time.perf_counter()
        reply = self._policy.infer(observation)
        self.times_ms.append(1e3 * (time.perf_counter() - began))
        return reply


class _LiftWatch:
    """Notices when something is lifted that the goal does not name."""

    def __init__(self, simulator: Simulator) -> None:
        named = {name for predicate in simulator.goal for name in predicate[1:]}
        self._simulator = simulator
        self._others: dict[str, Vector] = {
            name: simulator.position(name) for name in simulator.objects if name not in named
        }
        self.wrong_object = False

    def look(self) -> None:
        self.wrong_object = self.wrong_object or any(
            self._simulator.position(name)[2] - start[2] > _LIFTED_M for name, start in self._others.items()
        )
