from __future__ import annotations

import time
from typing import Any

from vlad_client.base_policy import BasePolicy
from vlad_client.runtime import Environment, PolicyAgent, Runtime, Subscriber


class Diary(Environment, Subscriber, BasePolicy):
    """Environment, subscriber and policy in one, that writes down who is asked for what."""

    def __init__(self, episode_steps: int = 1000) -> None:
        self.entries: list[str] = []
        self._episode_steps = episode_steps
        self._step = 0

    def reset(self) -> None:
        self.entries.append("reset")
        self._step = 0

    def is_episode_complete(self) -> bool:
        return self._step >= self._episode_steps

    def get_observation(self) -> dict[str, Any]:
        self.entries.append("observe")
        return {"step": self._step}

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {"action": 10 * observation["step"]}

    def apply_action(self, action: dict[str, Any]) -> None:
        self.entries.append(f"apply {action['action']}")
        self._step += 1

    def on_episode_start(self) -> None:
        self.entries.append("start")

    def on_step(self, observation: dict[str, Any], action: dict[str, Any]) -> None:
        self.entries.append(f"step {observation['step']} {action['action']}")

    def on_episode_end(self) -> None:
        self.entries.append("end")


class Silent(BasePolicy):
    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {"action": 0}


def test_an_episode_observes_acts_applies_and_notifies_in_this_order() -> None:
    diary = Diary(episode_steps=2)
    Runtime(diary, PolicyAgent(diary), [diary]).run()
    assert diary.entries == [
        *("reset", "reset", "start"),
        *("observe", "apply 0", "step 0 0"),
        *("observe", "apply 10", "step 1 10"),
        *("end", "reset"),
    ]


def test_every_episode_starts_afresh() -> None:
    diary = Diary(episode_steps=3)
    Runtime(diary, PolicyAgent(Silent()), [], num_episodes=4).run()
    assert diary.entries.count("reset") == 4 + 1
    assert diary.entries.count("observe") == 4 * 3


def test_the_step_limit_ends_an_episode_one_step_late_as_in_openpi() -> None:
    diary = Diary()
    Runtime(diary, PolicyAgent(Silent()), [], max_episode_steps=5).run()
    assert diary.entries.count("observe") == 6


def test_steps_are_held_to_the_rate() -> None:
    diary = Diary(episode_steps=10)
    started = time.monotonic()
    Runtime(diary, PolicyAgent(Silent()), [], max_hz=200).run()
    assert time.monotonic() - started >= 10 / 200


def test_an_episode_without_end_can_be_ended_from_outside() -> None:
    diary = Diary(episode_steps=10**9)
    runtime = Runtime(diary, PolicyAgent(Silent()), [], max_hz=1000)
    thread = runtime.run_in_new_thread()
    while "apply 0" not in diary.entries:
        time.sleep(0.001)
    runtime.mark_episode_complete()
    thread.join(timeout=10)
    assert not thread.is_alive()
