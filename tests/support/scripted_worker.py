"""An engine worker whose policy is a script: instant or slow, healthy or not, on command.

Started like the real worker. The checkpoint option is a JSON object:
`start_s` seconds to become ready, then `fail` for a reason not to (`fail_lines` times), `die` to crash,
`oom` to ask for more memory than there is,
`prepare_s` seconds to prepare a request, `infer_s` seconds to compute it, `horizon` actions in a chunk;
`batch_sizes` that it takes, `batch_s` seconds for each further request of a batch; `overlap_s` seconds before
`infer_s` that run beside the `infer_s` of another request; `continues` where it can continue chunks;
`engines` and `memory`, what it tells of them; `on`, what differs on a device, by its name.
A request's prompt may command more: `die`, `raise`, `bug`, `nan`, `refuse`, `sleep <seconds>`, `stop` itself
as a debugger does, `oom` (ask for more memory than there is), `lost` (fail as CUDA does after a bad access).
The chunk is a pure function of the state, so that a mixed-up reply shows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError, EngineError, ObservationError
from vlad_configs.rtc import ChunkContinuation
from vlad_engines.worker import ReportProgress, serve
from vlad_engines.worker_protocol import CONTINUATION_KEY, DeviceMemory, StartReport

ACTION_HORIZON = 10
PROMPTS_THAT_FAIL = ("raise", "bug", "refuse")
RTC_CAPABILITIES = {"modes": ["guided_identity"], "default_mode": "guided_identity"}


def expected_chunk(
    state: np.ndarray[Any, Any], width: int, horizon: int = ACTION_HORIZON
) -> np.ndarray[Any, Any]:
    """The chunk that the scripted policy returns for a state."""
    return np.add.outer(np.arange(horizon, dtype=np.float64), np.float64(state.sum()) + np.arange(width))


def expected_model_actions(actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The scripted chunk in the script's idea of a model's space: one column more."""
    return np.pad(actions, ((0, 0), (0, 1))).astype(np.float32)


def _report(continuation: ChunkContinuation) -> dict[str, Any]:
    """Like a real one, with all that came in the note."""
    given = continuation.model_actions if continuation.action_prefix is None else continuation.action_prefix
    anchor = continuation.anchor_state
    note = {
        "leftover": given.tolist() if given is not None else None,
        "anchor": None if anchor is None else anchor.tolist(),
    }
    return {
        "mode": "guided_identity",
        "delay": continuation.delay,
        "prefix_end": continuation.prefix_end,
        "beta": continuation.beta,
        "schedule": continuation.schedule,
        "valid_from": continuation.delay,
        "note": json.dumps(note),
    }


class ScriptedPolicy:
    """Does what its script and the prompts say."""

    def __init__(self, options: Mapping[str, Any], report: ReportProgress) -> None:
        self._script = json.loads(options["checkpoint_dir"])
        self._script |= self._script.pop("on", {}).get(options["device"], {})
        self._environment = ENVIRONMENTS[options["env"]]
        self._default_prompt = options["default_prompt"]
        report("reading the script", 0.5)
        _busy(self._script.get("start_s", 0.0))
        if "fail" in self._script:
            raise ConfigError("\n".join([self._script["fail"]] * self._script.get("fail_lines", 1)))
        if "die" in self._script:
            os.kill(os.getpid(), signal.SIGKILL)
        if "oom" in self._script:
            np.zeros(1 << 60, np.uint8)

    @property
    def metadata(self) -> dict[str, Any]:
        return {
            "family": "scripted",
            "pid": os.getpid(),
            "default_prompt": self._default_prompt,
            "vlad": {"rtc": RTC_CAPABILITIES if self._script.get("continues") else None},
        }

    @property
    def batch_sizes(self) -> list[int]:
        sizes: list[int] = self._script.get("batch_sizes", [1])
        return sizes

    @property
    def overlaps(self) -> bool:
        return "overlap_s" in self._script

    def start_report(self) -> StartReport:
        return StartReport({"load": self._script.get("start_s", 0.0)}, self._script.get("engines", {}))

    def device_memory(self) -> DeviceMemory | None:
        return DeviceMemory(**self._script["memory"]) if "memory" in self._script else None

    def prepare(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        # To sleep for no time at all takes 60 microseconds.
        if (seconds := self._script.get("prepare_s", 0.0)) > 0:
            time.sleep(seconds)
        return observation

    def begin(self, observations: Sequence[Mapping[str, Any]]) -> _Begun:
        front_s = self._script.get("overlap_s", 0.0) * len(observations)
        if front_s and any(observation.get("prompt") == "refuse" for observation in observations):
            raise ObservationError("prompt", "another prompt", "refuse")
        if front_s:
            time.sleep(front_s)
        return _Begun(self, observations, front_s)

    def infer_batch(self, observations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        assert len(observations) in self.batch_sizes
        if len(observations) == 1:
            return [self.infer(observations[0])]
        if any(observation.get("prompt") in PROMPTS_THAT_FAIL for observation in observations):
            raise EngineError("one of them is bad")
        if any(observation.get("prompt") == "die" for observation in observations):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self._script.get("batch_s", 0.0) * (len(observations) - 1))
        first, *others = observations
        return [self.infer(first), *(self.infer({**other, "prompt": "sleep 0"}) for other in others)]

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        started = time.perf_counter()
        prompt = observation.get("prompt", "")
        if prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if prompt == "oom":
            np.zeros(1 << 60, np.uint8)
        if prompt == "lost":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if prompt == "raise":
            raise EngineError("the script says so")
        if prompt == "bug":
            raise ZeroDivisionError("a defect")
        if prompt == "refuse":
            raise ObservationError("prompt", "another prompt", "refuse")
        seconds = (
            float(prompt.split()[1]) if prompt.startswith("sleep ") else self._script.get("infer_s", 0.0)
        )
        if seconds:
            time.sleep(seconds)
        state = np.concatenate([np.ravel(observation[vector.key]) for vector in self._environment.state])
        horizon = self._script.get("horizon", ACTION_HORIZON)
        actions = expected_chunk(state, self._environment.action_width, horizon)
        if prompt == "nan":
            actions[3, 2] = np.nan
        milliseconds = 1e3 * (time.perf_counter() - started)
        reply = {"actions": actions, "policy_timing": {"infer_ms": milliseconds, "denoise_ms": milliseconds}}
        if self._script.get("continues"):
            reply |= {"model_actions": expected_model_actions(actions), "anchor_state": np.float64(state)}
            if CONTINUATION_KEY in observation:
                reply["rtc"] = _report(ChunkContinuation(**observation[CONTINUATION_KEY]))
        return reply


class _Begun:
    """Computes when it is waited for."""

    def __init__(
        self, policy: ScriptedPolicy, observations: Sequence[Mapping[str, Any]], front_s: float
    ) -> None:
        self._policy, self._observations, self._front_s = policy, observations, front_s
        self._replies: list[Mapping[str, Any]] = []

    def wait(self) -> None:
        self._replies = self._policy.infer_batch(self._observations)

    def reply(self, index: int) -> Mapping[str, Any]:
        reply = dict(self._replies[index])
        if self._front_s:
            reply["policy_timing"] = {**reply["policy_timing"], "prefix_ms": 1e3 * self._front_s}
        return reply


def _busy(seconds: float) -> None:
    """Hold the GIL the way a compiler or an engine builder does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


if __name__ == "__main__":
    sys.exit(serve(ScriptedPolicy, sys.argv[1:]))
