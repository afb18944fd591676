"""What came out of a batch, in host memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vlad_engines.backends.base import InferenceResult, PrunedTokens


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """The actions of a batch and what pruning did to it.

    Attributes:
        actions: `[B, H, A]` float32, an array of its own.
        pruned: one for each request; empty where pruning is off.
    """

    actions: npt.NDArray[np.float32]
    pruned: Sequence[PrunedTokens] = ()

    def results(
        self, stage_seconds: Mapping[str, float], overlapped_seconds: float = 0.0
    ) -> list[InferenceResult]:
        """One result per request; the times are those of the whole batch."""
        pruned: Sequence[PrunedTokens | None] = self.pruned or [None] * len(self.actions)
        return [
            InferenceResult(actions, stage_seconds, overlapped_seconds, tokens)
            for actions, tokens in zip(self.actions, pruned, strict=True)
        ]


def pruned_tokens(before: int, selected: npt.NDArray[np.int32]) -> tuple[PrunedTokens, ...]:
    """Read what came down from the device.

    Args:
        before: image tokens of each request.
        selected: `[B, 2]`, kept and voted for.
    """
    return tuple(PrunedTokens(before, int(kept), int(voted)) for kept, voted in selected)
