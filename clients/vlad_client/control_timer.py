"""When the next control step is due."""

from __future__ import annotations


class ControlTimer:
    """Steps at a steady rate on the caller's clock.

    The time of a step is counted from when the previous one was due, so that late wake-ups do not add
    up. A step that is late by a whole period or more starts the count afresh: steps that were missed are
    not made up for, because a robot must not execute several actions in a burst.
    """

    def __init__(self, now: float) -> None:
        self._due = now
        self.overruns = 0
        """Steps that began at least one period late."""

    def wait_s(self, now: float) -> float:
        """Seconds until the next step is due; zero when it is."""
        return max(0.0, self._due - now)

    def advance(self, now: float, period_s: float) -> None:
        """Take note that the step that was due begins, and that the next shall follow `period_s` later."""
        if now - self._due >= period_s:
            self.overruns += 1
            self._due = now
        self._due += period_s
