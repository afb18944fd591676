"""An engine worker whose policy is a script: instant or slow, healthy or not, on command.

Started like the real worker. The checkpoint option is a JSON object:
`start_s` seconds to become ready, `fail` a reason not to start (`fail_lines` times), `die` to crash instead,
`infer_s` seconds per request, `horizon` actions in a chunk.
A request's prompt may command more: `die`, `raise`, `bug`, `nan`, `refuse`, `sleep <seconds>`.
The chunk is a pure function of the state, so that a mixed-up reply shows.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError, EngineError, ObservationError
from vlad_engines.worker import ReportProgress, serve

ACTION_HORIZON = 10


def expected_chunk(
    state: np.ndarray[Any, Any], width: int, horizon: int = ACTION_HORIZON
) -> np.ndarray[Any, Any]:
    """The chunk that the scripted policy returns for a state."""
    return np.add.outer(np.arange(horizon, dtype=np.float64), np.float64(state.sum()) + np.arange(width))


class ScriptedPolicy:
    """Does what its script and the prompts say."""

    def __init__(self, options: Mapping[str, Any], report: ReportProgress) -> None:
        self._script = json.loads(options["checkpoint_dir"])
        self._environment = ENVIRONMENTS[options["env"]]
        self._default_prompt = options["default_prompt"]
        report("reading the script", 0.5)
        if "fail" in self._script:
            raise ConfigError("\n".join([self._script["fail"]] * self._script.get("fail_lines", 1)))
        if "die" in self._script:
            os.kill(os.getpid(), signal.SIGKILL)
        _busy(self._script.get("start_s", 0.0))

    @property
    def metadata(self) -> dict[str, Any]:
        return {"family": "scripted", "pid": os.getpid(), "default_prompt": self._default_prompt}

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        started = time.perf_counter()
        prompt = observation.get("prompt", "")
        if prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)
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
        return {"actions": actions, "policy_timing": {"infer_ms": milliseconds, "denoise_ms": milliseconds}}


def _busy(seconds: float) -> None:
    """Hold the GIL the way a compiler or an engine builder does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


if __name__ == "__main__":
    sys.exit(serve(ScriptedPolicy, sys.argv[1:]))
