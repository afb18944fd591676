"""Holds each chunk against the operator's limits, where there are some, and against finiteness, always."""

from __future__ import annotations

import dataclasses
import logging
import time

import numpy as np

from vlad_configs.action_limits import ActionLimits, Violations
from vlad_configs.errors import EngineError
from vlad_server.metrics import ServerMetrics
from vlad_server.outcomes import Reply

logger = logging.getLogger("vlad.server")

LOG_EVERY_S = 1.0
"""A policy that runs against a limit does so in every chunk."""


class ActionGuard:
    """Checks chunks before they are sent.

    Args:
        limits: None where only finiteness is asked for.
    """

    def __init__(self, limits: ActionLimits | None, metrics: ServerMetrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._logged = -LOG_EVERY_S

    def checked(self, reply: Reply) -> tuple[Reply | EngineError, tuple[str, ...]]:
        """The reply as it may be sent, or why it may not; and warnings for a client that reads them."""
        if not np.isfinite(reply.actions).all():
            return EngineError("the policy returned non-finite actions; they are never sent"), ()
        if self._limits is None or (violations := self._limits.violations(reply.actions)) is None:
            return reply, ()
        text = f"the chunk breaks an action limit: {violations.first}"
        self._count(violations, f"{text} ({self._limits.reaction})")
        if self._limits.reaction == "refuse":
            return EngineError(f"{text}; it is not sent"), ()
        if self._limits.reaction == "clip":
            clipped = dataclasses.replace(reply, actions=self._limits.clip(reply.actions))
            return clipped, (f"{text}; it was clipped",)
        return reply, (text,)

    def _count(self, violations: Violations, text: str) -> None:
        counters = self._metrics.action_limit_violations
        for name, count in (("low", violations.low), ("high", violations.high), ("step", violations.step)):
            counters[name].inc(count)
        now = time.monotonic()
        if now - self._logged >= LOG_EVERY_S:
            self._logged = now
            logger.warning("%s", text)
