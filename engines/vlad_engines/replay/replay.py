"""Feeds recorded requests to a policy, with the noise and the continuation that each had."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError, EngineError, ObservationError
from vlad_configs.rtc import ChunkContinuation
from vlad_server.recordings.exchange import RecordedExchange
from vlad_server.recordings.reader import Recording
from vlad_server.recordings.run_file import Run

logger = logging.getLogger("vlad.replay")


class ReplayedPolicy(Protocol):
    """What a replay needs of a policy; `UnifiedPolicy` is one."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """For the run's file."""
        ...

    def infer(
        self,
        observation: Mapping[str, Any],
        *,
        noise: npt.ArrayLike | None = None,
        seed: int | None = None,
        chunk_continuation: ChunkContinuation | None = None,
    ) -> dict[str, Any]:
        """See `UnifiedPolicy.infer`."""
        ...


def replay(
    recording: Recording,
    policy: ReplayedPolicy,
    exchanges: Iterable[RecordedExchange],
    on_chunk: Callable[[float], None] = lambda _: None,
) -> Run:
    """Compute the chunk of each exchange again.

    Requests on which the policy fails are left out of the run, with a warning, as those are on which it
    failed when they were recorded.

    Args:
        on_chunk: told the seconds that each chunk took.

    Raises:
        ConfigError: where no request can be computed, or the policy has another shape of noise.
    """
    numbers, chunks = [], []
    for exchange in exchanges:
        observation = recording.observation(exchange)
        noise, seed = noise_of(exchange, observation)
        keys = {key: value for key, value in observation.items() if not key.startswith("vlad/")}
        if "prompt" not in keys and recording.policy.get("default_prompt") is not None:
            keys["prompt"] = recording.policy["default_prompt"]
        started = time.perf_counter()
        try:
            reply = policy.infer(
                keys, noise=noise, seed=seed, chunk_continuation=_continuation(exchange.continuation)
            )
        except ObservationError as error:
            if error.key == "vlad/noise":
                raise ConfigError(f"this policy cannot start from the recorded noise: {error}") from error
            logger.warning("request %d: %s", exchange.number, error)
        except EngineError as error:
            logger.warning("request %d: %s", exchange.number, error)
        else:
            numbers.append(exchange.number)
            chunks.append(reply["actions"])
            on_chunk(time.perf_counter() - started)
    if not chunks:
        raise ConfigError(f"no request of {recording.path} could be computed")
    return Run(str(recording.path), policy.metadata, np.array(numbers, np.int64), np.stack(chunks))


def noise_of(
    exchange: RecordedExchange, observation: Mapping[str, Any]
) -> tuple[npt.ArrayLike | None, int | None]:
    """What the chunk started from: noise, or a seed where the file does not hold the noise itself."""
    if exchange.noise is not None:
        return exchange.noise, None
    if "vlad/noise" in observation:
        return observation["vlad/noise"], None
    return None, exchange.seed


def _continuation(fields: Mapping[str, Any] | None) -> ChunkContinuation | None:
    return None if fields is None else ChunkContinuation(**fields)
