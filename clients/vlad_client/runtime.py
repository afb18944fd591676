"""A control loop: an environment, an agent that acts in it, and those who watch."""

from __future__ import annotations

import abc
import logging
import threading
import time
from typing import Any, Sequence

from vlad_client.base_policy import BasePolicy

logger = logging.getLogger("vlad_client")


class Environment(abc.ABC):
    """A robot or a simulator."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Go to the start of an episode; called before each episode and once after the last."""

    @abc.abstractmethod
    def is_episode_complete(self) -> bool:
        """Whether the episode is over."""

    @abc.abstractmethod
    def get_observation(self) -> dict[str, Any]:
        """What the policy needs to know."""

    @abc.abstractmethod
    def apply_action(self, action: dict[str, Any]) -> None:
        """Execute one action."""


class Agent(abc.ABC):
    """Decides what to do."""

    @abc.abstractmethod
    def get_action(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Choose one action."""

    @abc.abstractmethod
    def reset(self) -> None:
        """Prepare for a new episode."""


class PolicyAgent(Agent):
    """An agent that does what a policy of single actions says; see `ActionChunkBroker`."""

    def __init__(self, policy: BasePolicy) -> None:
        self._policy = policy

    def get_action(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Ask the policy."""
        return self._policy.infer(observation)

    def reset(self) -> None:
        """Reset the policy."""
        self._policy.reset()


class Subscriber(abc.ABC):
    """Watches a runtime: saves videos, draws, counts."""

    @abc.abstractmethod
    def on_episode_start(self) -> None:
        """Called after environment and agent have been reset."""

    @abc.abstractmethod
    def on_step(self, observation: dict[str, Any], action: dict[str, Any]) -> None:
        """Called after `action` has been applied."""

    @abc.abstractmethod
    def on_episode_end(self) -> None:
        """Called after the last step."""


class Runtime:
    """Runs episodes: observe, act, apply, notify, at a steady rate.

    Args:
        max_hz: steps per second, 0 for as fast as possible. A late step is not caught up.
        num_episodes: episodes of one `run`.
        max_episode_steps: ends an episode that the environment does not end; 0 never. As in openpi,
            the step that finds the limit reached is still taken: one more than this many run.
    """

    def __init__(
        self,
        environment: Environment,
        agent: Agent,
        subscribers: Sequence[Subscriber],
        max_hz: float = 0,
        num_episodes: int = 1,
        max_episode_steps: int = 0,
    ) -> None:
        self._environment = environment
        self._agent = agent
        self._subscribers = subscribers
        self._step_s = 1 / max_hz if max_hz > 0 else 0.0
        self._num_episodes = num_episodes
        self._max_episode_steps = max_episode_steps
        self._in_episode = False

    def run(self) -> None:
        """Run all episodes, then reset the environment once more."""
        for _ in range(self._num_episodes):
            self._run_episode()
        self._environment.reset()

    def run_in_new_thread(self) -> threading.Thread:
        """Run in a thread, which is returned started."""
        thread = threading.Thread(target=self.run, name="runtime")
        thread.start()
        return thread

    def mark_episode_complete(self) -> None:
        """End the present episode after the present step."""
        self._in_episode = False

    def _run_episode(self) -> None:
        self._environment.reset()
        self._agent.reset()
        for subscriber in self._subscribers:
            subscriber.on_episode_start()
        self._in_episode = True
        step = 0
        started = time.monotonic()
        while self._in_episode:
            self._take_step()
            if self._environment.is_episode_complete() or 0 < self._max_episode_steps <= step:
                self.mark_episode_complete()
            step += 1
            time.sleep(max(0.0, self._step_s - (time.monotonic() - started)))
            started = time.monotonic()
        logger.info("episode ended after %d steps", step)
        for subscriber in self._subscribers:
            subscriber.on_episode_end()

    def _take_step(self) -> None:
        observation = self._environment.get_observation()
        action = self._agent.get_action(observation)
        self._environment.apply_action(action)
        for subscriber in self._subscribers:
            subscriber.on_step(observation, action)
