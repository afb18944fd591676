"""How a robot executes chunks in real time: everything that can be chosen, with its default."""

from __future__ import annotations

import dataclasses
import math

LATE_MODES = ("hold_last", "hold_zero", "slow_down")
RTC_MODES = ("auto", "guided_identity", "guided_vjp", "trained")
SCHEDULES = ("exp", "linear", "ones", "zeros")

DEFAULT_SLOWEST = 0.5


@dataclasses.dataclass(frozen=True)
class RtcOptions:
    """What is asked of a server that offers real-time chunking.

    Attributes:
        mode: how the new chunk is tied to the old one; `auto` is the best that the server has.
        beta: largest guidance factor; None for the server's, the number of its denoising steps.
        schedule: weights of the old actions behind the frozen ones; None for the server's.
        prefix_end: first step of the new chunk on which the old one has no influence; None lets the
            server take all that is left of the old chunk, but for the steps that will be new anyway.

    Raises:
        ValueError: for values that no server understands.
    """

    mode: str = "auto"
    beta: float | None = None
    schedule: str | None = None
    prefix_end: int | None = None

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, RTC_MODES)
        if self.schedule is not None:
            _one_of("schedule", self.schedule, SCHEDULES)
        if self.beta is not None:
            _positive("beta", self.beta)
        if self.prefix_end is not None:
            _whole("prefix_end", self.prefix_end, 0)


@dataclasses.dataclass(frozen=True)
class RealTimeConfig:
    """How chunks are asked for and executed.

    Attributes:
        control_hz: actions a second.
        execute_steps: actions of a chunk that are executed before a new one is asked for; None for half
            of the chunk. A new chunk is asked for earlier where the old one would not last until it comes.
        margin_steps: actions that shall be left when a chunk comes as late as the latency estimate says.
        observation_hz: sends observations at this rate, however much of the chunk is left, and takes every
            chunk that comes; the server computes the freshest. Where chunks continue each other an
            observation waits for the previous chunk, which it has to name. None asks for chunks as
            `execute_steps` says.
        late: what the robot does once it has no action left. `hold_last` repeats the last action, right
            for positions. `hold_zero` repeats it with `zero_columns` at zero, right for velocities and
            deltas. `slow_down` lowers the control rate before it comes to that, then holds the last action.
        zero_columns: with `hold_zero`, the columns of the action that become zero; None for all. Leave
            a gripper's column out, so that it keeps its grip.
        slowest: with `slow_down`, the lowest rate as a fraction of `control_hz`; None for 0.5.
        blend_steps: steps over which a chunk that the server did not tie to the old one is faded in.
        latency_window: chunks whose latency counts.
        latency_percentile: of their latencies, taken as the time that the next chunk needs.
        request_timeout_s: how long a chunk is waited for before it is asked for again; sent to the server
            as the deadline of the request, so that it is not computed in vain.
        rtc: options of real-time chunking, used where the server offers it; None for plain chunks.

    Raises:
        ValueError: for values out of range and options that contradict each other.
    """

    control_hz: float
    execute_steps: int | None = None
    margin_steps: int = 1
    observation_hz: float | None = None
    late: str = "hold_last"
    zero_columns: tuple[int, ...] | None = None
    slowest: float | None = None
    blend_steps: int = 0
    latency_window: int = 50
    latency_percentile: float = 95.0
    request_timeout_s: float = 5.0
    rtc: RtcOptions | None = dataclasses.field(default_factory=RtcOptions)

    def __post_init__(self) -> None:
        _positive("control_hz", self.control_hz)
        _positive("request_timeout_s", self.request_timeout_s)
        _whole("margin_steps", self.margin_steps, 0)
        _whole("blend_steps", self.blend_steps, 0)
        _whole("latency_window", self.latency_window, 1)
        if not 0 < self.latency_percentile <= 100:
            raise ValueError(f"latency_percentile must be in (0, 100], not {self.latency_percentile}")
        _one_of("late", self.late, LATE_MODES)
        if self.execute_steps is not None:
            _whole("execute_steps", self.execute_steps, 1)
        if self.observation_hz is not None:
            _positive("observation_hz", self.observation_hz)
            if self.observation_hz > self.control_hz:
                raise ValueError(
                    f"observation_hz must not exceed control_hz, {self.control_hz:g}, "
                    f"not {self.observation_hz:g}"
                )
            if self.execute_steps is not None:
                raise ValueError("execute_steps has no effect beside observation_hz: give one of them")
        self._check_late_options()

    @property
    def slowest_fraction(self) -> float:
        """Lowest control rate as a fraction of `control_hz`; 1 unless `late` is `slow_down`."""
        if self.late != "slow_down":
            return 1.0
        return DEFAULT_SLOWEST if self.slowest is None else self.slowest

    def _check_late_options(self) -> None:
        if self.zero_columns is not None:
            if self.late != "hold_zero":
                raise ValueError(f"zero_columns belongs to late='hold_zero', not to late={self.late!r}")
            for column in self.zero_columns:
                _whole("zero_columns", column, 0)
        if self.slowest is not None:
            if self.late != "slow_down":
                raise ValueError(f"slowest belongs to late='slow_down', not to late={self.late!r}")
            if not 0 < self.slowest < 1:
                raise ValueError(f"slowest must be in (0, 1), not {self.slowest}")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, not {value}")


def _whole(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}")
