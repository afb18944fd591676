"""The daemon's state: one value, read by sessions, probes and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from vlad_server.metrics import ServerMetrics

State = Literal["starting", "loading", "ready", "restarting", "draining", "failed"]


class Readiness:
    """Where the daemon is between start and stop.

    `draining` and `failed` are final: later changes are ignored. Written on the event loop only;
    `state` and `explanation` may be read from any thread.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self.state: State = "starting"
        self.explanation = "starting the engine worker"
        self.metadata: Mapping[str, Any] = {}
        self._ready = asyncio.Event()
        self._draining = asyncio.Event()
        metrics.set_state(self.state)

    @property
    def is_ready(self) -> bool:
        """True while requests are served."""
        return self.state == "ready"

    @property
    def is_draining(self) -> bool:
        """True once the daemon is on its way out."""
        return self._draining.is_set()

    @property
    def farewell(self) -> tuple[int, str]:
        """Close code and reason for whoever is still connected when the daemon ends."""
        if self.state == "failed":
            return 1011, "the server failed; its log says why"
        return 1001, "server is going away"

    def change(self, state: State, explanation: str) -> None:
        """Move to `state`; `explanation` is what probes and logs show."""
        if self.state in ("draining", "failed"):
            return
        self.state = state
        self.explanation = explanation
        self._metrics.set_state(state)
        if state == "ready":
            self._ready.set()
        else:
            self._ready.clear()
        if state in ("draining", "failed"):
            self._draining.set()

    async def wait_ready(self) -> None:
        """Return once the policy is ready; for ever pending where it never becomes so."""
        await self._ready.wait()

    async def wait_draining(self) -> None:
        """Return once the daemon begins to stop."""
        await self._draining.wait()
