"""Which algorithm was the fastest for which product, remembered for each GPU and version of the library."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from vlad_engines.backends.triton.library.cublaslt import Offer, Shape
from vlad_engines.backends.triton.library.remembered import Remembered, rounded_rows

LEAST_GAIN = 0.01
"""Part of its time that another way must save against the usual one: what one measurement can tell."""


def fastest(own_s: float, offered_s: Sequence[float]) -> int | None:
    """The offer to take; None where the usual way is as good.

    Args:
        own_s: seconds that the usual way takes. offered_s: those of the offers.
    """
    best = min(range(len(offered_s)), key=offered_s.__getitem__, default=None)
    if best is None or offered_s[best] > own_s * (1.0 - LEAST_GAIN):
        return None
    return best


class Choices(Remembered[Shape, Offer]):
    """The choices of one GPU model under one version of the library; None stands for torch's own."""

    def describe(self) -> str:
        """How many are not torch's, and a digest."""
        chosen = {name: offer for name, offer in sorted(self._chosen.items()) if offer is not None}
        digest = hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]
        return f"{len(chosen)} of {len(self._chosen)} kinds by measured algorithms ({digest})"

    @staticmethod
    def _name(kind: Shape) -> str:
        epilogue = " bias" * kind.bias + " gelu" * kind.gelu
        return f"{rounded_rows(kind.rows)}x{kind.width}x{kind.depth}{epilogue}"

    @staticmethod
    def _to_json(chosen: Offer) -> Any:
        return {"words": list(chosen.words), "workspace_bytes": chosen.workspace_bytes}

    @staticmethod
    def _from_json(document: Any) -> Offer:
        return Offer(tuple(map(int, document["words"])), int(document["workspace_bytes"]))
