"""What a number of successes says: intervals and paired tests. Pure; standard library only."""

from __future__ import annotations

import math
from typing import Sequence

# Two-sided 95 % of the normal distribution.
Z_95 = 1.959963984540054


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), without continuity correction.

    Args:
        successes: of `trials`.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        Lower and upper limit in 0..1; 0 and 1 for no trials.

    Raises:
        ValueError: unless 0 <= successes <= trials.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must be in 0..{trials}, not {successes}")
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, z * z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    reach = z / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    # At 0 and 1 the formula's terms cancel exactly, its rounded terms do not.
    low = 0.0 if successes == 0 else max(0.0, centre - reach)
    high = 1.0 if successes == trials else min(1.0, centre + reach)
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test, for the same trials run twice.

    Under the hypothesis that both are equally good, each trial on which they differ is a fair coin.

    Args:
        only_first: trials in which only the first succeeded.
        only_second: trials in which only the second did.

    Raises:
        ValueError: for negative numbers.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"counts must not be negative: {only_first}, {only_second}")
    differing = only_first + only_second
    tail = sum(math.comb(differing, k) for k in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**differing))


def discordant(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int]:
    """How often only the first, and only the second, of two paired runs succeeded.

    Raises:
        ValueError: for runs of different length.
    """
    if len(first) != len(second):
        raise ValueError(f"paired runs have the same length, not {len(first)} and {len(second)}")
    pairs = list(zip(first, second, strict=True))
    return sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
