"""Examines the observations of all robots: which ones, who is told, what is counted."""

from __future__ import annotations

import dataclasses
import logging
import weakref
from typing import Any

from vlad_configs.environments import Environment
from vlad_server.doctor.examination import Finding, History, examine, notes_of_policy
from vlad_server.exchange import Exchange
from vlad_server.metrics import ServerMetrics
from vlad_server.outcomes import Reply
from vlad_server.sessions import Session

logger = logging.getLogger("vlad.server")

SAMPLED = 8
"""Of robots that do not ask, every so many-th observation is examined, the first one among them."""


@dataclasses.dataclass
class _Chart:
    """What is known of one robot."""

    history: History = dataclasses.field(default_factory=History)
    observations: int = 0
    told: set[tuple[str, str]] = dataclasses.field(default_factory=set)


class ObservationDoctor:
    """Examines while the engine computes, so that no reply waits for it.

    Args:
        robot: whose observations come.
    """

    def __init__(self, robot: Environment, metrics: ServerMetrics) -> None:
        self._robot = robot
        self._metrics = metrics
        self._charts: weakref.WeakKeyDictionary[Session, _Chart] = weakref.WeakKeyDictionary()

    def examine(self, exchange: Exchange) -> None:
        """Look at a request that has been handed over, where it is its turn or its client asks."""
        chart = self._chart(exchange.session)
        is_due = chart.observations % SAMPLED == 0
        chart.observations += 1
        if is_due or exchange.options.doctor:
            self._metrics.observations_examined.inc()
            findings = examine(self._robot, exchange.observation, chart.history)
            exchange.findings = self._noted(exchange.session, chart, findings)

    def report(self, exchange: Exchange, reply: Reply) -> list[dict[str, Any]]:
        """All that is wrong with an observation, for its client: maps of `kind`, `key` and `text`."""
        findings = list(exchange.findings)
        if reply.notes:
            chart = self._chart(exchange.session)
            findings += self._noted(exchange.session, chart, notes_of_policy(self._robot, reply.notes))
        return [dataclasses.asdict(finding) for finding in findings]

    def _chart(self, session: Session) -> _Chart:
        chart = self._charts.get(session)
        if chart is None:
            chart = self._charts[session] = _Chart()
        return chart

    def _noted(self, session: Session, chart: _Chart, findings: list[Finding]) -> list[Finding]:
        for finding in findings:
            self._metrics.observation_warnings[finding.kind].inc()
            if (finding.kind, finding.key) not in chart.told:
                chart.told.add((finding.kind, finding.key))
                name = "a robot" if session.session_id is None else f"robot {session.session_id!r}"
                logger.warning("%s: %s: %s (%s)", name, finding.key, finding.text, finding.kind)
        return findings
