"""What a connection tells the recorder: which noise a chunk starts from, and how its request ended."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np

from vlad_server import wire
from vlad_server.exchange import Exchange
from vlad_server.readiness import Readiness
from vlad_server.recordings.recorder import Recorder

_SEED_BITS = 62


class ExchangeRecorder:
    """Records the exchanges of one connection.

    Args:
        readiness: knows the metadata of the policy that answers.
    """

    def __init__(self, recorder: Recorder, readiness: Readiness) -> None:
        self._recorder = recorder
        self._readiness = readiness
        self._connection = recorder.count_connection()

    def pin_noise(self, exchange: Exchange, selected: dict[str, Any]) -> None:
        """Draw a seed for a request without seed and noise, so that its chunk can be computed again.

        Args:
            selected: what the policy gets; it then gets the seed as well.
        """
        if "vlad/noise" in selected:
            return
        if "vlad/seed" not in selected:
            selected["vlad/seed"] = random.getrandbits(_SEED_BITS)
        exchange.seed = selected["vlad/seed"]

    def answered(self, exchange: Exchange, message: dict[str, Any], payload: bytes | str) -> None:
        """Record a request and its reply.

        Args:
            message: the reply map.
            payload: the frame that was sent; RoboArena's dialect sends only a part of the map.
        """
        is_whole = isinstance(payload, bytes) and not exchange.is_roboarena
        self._record(exchange, payload if is_whole else wire.encode(message), None)

    def failed(self, exchange: Exchange, error: Exception) -> None:
        """Record a request on which the engine failed."""
        self._record(exchange, b"", str(error))

    def _record(self, exchange: Exchange, reply: Any, error: str | None) -> None:
        now_ns = time.time_ns()
        header = {
            "received_ns": now_ns - round(1e9 * (time.perf_counter() - exchange.received)),
            "replied_ns": now_ns,
            "connection": self._connection,
            "session": exchange.session.session_id,
            "error": error,
            "seed": None if exchange.seed is None else np.asarray(exchange.seed).item(),
            "continuation": exchange.continuation,
        }
        self._recorder.record(header, exchange.frame_received, reply, self._readiness.metadata)
