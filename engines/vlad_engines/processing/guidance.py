"""The numbers that draw a chunk towards the leftover of the one before. Plain arrays for every backend.

One Euler step from time t to t + dt, with dt = -1/n, velocity v, weights W, target y and gain g_k (which
has the 1/n in it) is

    x <- x + dt * v + g_k * W * (y - (x - t * v))    where W > 0, and x <- x + dt * v elsewhere.

With W = 0 this is plain sampling, bit for bit: the same captured graph serves both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlad_configs.rtc import GuidanceMode, GuidanceSchedule

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Guidance:
    """What a backend is told about one request. H action horizon, A action width, N Euler steps.

    Attributes:
        mode: how the numbers are meant. For `guided_identity` and `trained` they say everything: a graph
            that reads all four needs no switch. `guided_vjp` pulls `W * (y - ...)` back through the network.
        weights: W, `[H, A]` float32 in 0..1; 0 in columns that only pad the robot's action. All 0 for
            `trained`.
        target: y, `[H, A]` float32, normalised as the network's actions are; 0 behind the leftover and in
            padding columns.
        gains: `[N]` float32, `min(beta, g(t_k)) / N`.
        frozen: the first actions, up to this index, are `target` before and after every step, and their
            tokens take the time conditioning of t = 0. 0 but for `trained`.
    """

    mode: GuidanceMode
    weights: Array
    target: Array
    gains: Array
    frozen: int = 0

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.weights.shape != self.target.shape or self.gains.ndim != 1:
            raise ValueError(
                "weights and target must share a shape [H, A] and gains be a vector, not "
                f"{self.weights.shape}, {self.target.shape} and {self.gains.shape}"
            )
        if any(array.dtype != np.float32 for array in (self.weights, self.target, self.gains)):
            raise ValueError("weights, target and gains must be float32")
        if not 0 <= self.frozen <= len(self.target) or (self.frozen > 0) != (self.mode == "trained"):
            raise ValueError(f"{self.frozen} frozen actions of {len(self.target)} in mode {self.mode}")


def prefix_weights(
    schedule: GuidanceSchedule, delay: int, prefix_end: int, horizon: int
) -> npt.NDArray[np.float64]:
    """How strongly each action of a chunk is held to the previous chunk, `[horizon]` in 0..1.

    1 before `min(delay, prefix_end)`, 0 from `prefix_end` on. Between them `zeros` is 0, `ones` is 1,
    `linear` falls evenly, and `exp` is linear w bent to `w * (e^w - 1) / (e - 1)`.
    """
    start, index = min(delay, prefix_end), np.arange(horizon)
    if schedule == "zeros":
        falling = np.zeros(horizon)
    elif schedule == "ones":
        falling = np.ones(horizon)
    else:
        falling = np.minimum((prefix_end - index) / (prefix_end - start + 1), 1.0)
        if schedule == "exp":
            falling = falling * np.expm1(falling) / math.expm1(1.0)
    return np.where(index < start, 1.0, np.where(index < prefix_end, falling, 0.0))


def guidance_factor(time: float) -> float:
    """g(t) before it is clipped: `(t^2 + (1 - t)^2) / (t * (1 - t))`; infinite at t = 1 and t = 0.

    In the paper's time tau = 1 - t it is `(1 - tau) / (tau * r^2)` with
    `r^2 = (1 - tau)^2 / (tau^2 + (1 - tau)^2)`.
    """
    product = time * (1.0 - time)
    return math.inf if product <= 0 else (time**2 + (1.0 - time) ** 2) / product


def guidance_gains(times: Sequence[float], beta: float) -> Array:
    """`min(beta, g(t)) / N` for the N times of an Euler schedule, `[N]` float32.

    Up to beta = N no gain exceeds 1: with weight 1 a step then goes at most all the way to the target.
    """
    return np.array([min(beta, guidance_factor(time)) / len(times) for time in times], np.float32)
