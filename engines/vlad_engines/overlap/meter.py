"""How much of the work really ran side by side, from the times of the device."""

from __future__ import annotations

import collections
import dataclasses


@dataclasses.dataclass(frozen=True)
class RequestTimes:
    """When the stages of one request ran, in seconds on a clock that all requests share."""

    begin: float
    vision_end: float
    front_end: float
    denoise_begin: float
    denoise_end: float

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds of `vision`, `prefix` and `denoise`; waiting between them is nobody's."""
        return {
            "vision": self.vision_end - self.begin,
            "prefix": self.front_end - self.vision_end,
            "denoise": self.denoise_end - self.denoise_begin,
        }


@dataclasses.dataclass(frozen=True)
class OverlapReport:
    """Sums over all requests so far.

    Attributes:
        requests: how many.
        busy_seconds: time in which at least one stream worked.
        overlapped_seconds: time in which both did.
    """

    requests: int = 0
    busy_seconds: float = 0.0
    overlapped_seconds: float = 0.0

    @property
    def fraction(self) -> float:
        """Overlapped part of the busy time, 0..1."""
        return self.overlapped_seconds / self.busy_seconds if self.busy_seconds else 0.0


class OverlapMeter:
    """Adds requests up in the order in which they were submitted.

    Args:
        lanes: requests in flight at most. Older ones cannot overlap with a new one.
    """

    def __init__(self, lanes: int) -> None:
        self._denoising: collections.deque[tuple[float, float]] = collections.deque(maxlen=lanes)
        self._report = OverlapReport()

    @property
    def report(self) -> OverlapReport:
        """The sums; may be read from any thread."""
        return self._report

    def add(self, times: RequestTimes) -> float:
        """Count a request; returns the seconds in which its front ran beside earlier requests' denoising."""
        overlapped = sum(
            max(0.0, min(times.front_end, end) - max(times.begin, begin)) for begin, end in self._denoising
        )
        self._denoising.append((times.denoise_begin, times.denoise_end))
        report = self._report
        self._report = OverlapReport(
            report.requests + 1,
            report.busy_seconds + sum(times.stage_seconds.values()) - overlapped,
            report.overlapped_seconds + overlapped,
        )
        return overlapped
