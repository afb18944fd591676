"""Which algorithm was the fastest for which product, remembered for each GPU and version of the library."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Sequence

from vlad_engines.backends.triton.library.cublaslt import Offer, Shape

logger = logging.getLogger("vlad.triton")

ROWS_APART = 512
"""Products whose rows round up to the same multiple share their algorithm."""

LEAST_GAIN = 0.01
"""Part of its time that an algorithm must save against torch's own choice: what one measurement can tell."""


def fastest(own_s: float, offered_s: Sequence[float]) -> int | None:
    """The offer to take; None where torch's own choice is as good.

    Args:
        own_s: seconds that torch's own choice takes. offered_s: those of the offers.
    """
    best = min(range(len(offered_s)), key=offered_s.__getitem__, default=None)
    if best is None or offered_s[best] > own_s * (1.0 - LEAST_GAIN):
        return None
    return best


class Choices:
    """The choices of one GPU model under one version of the library; None stands for torch's own.

    Args:
        path: JSON file; read now, written with every new choice.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._chosen = _read(path)

    def __contains__(self, shape: Shape) -> bool:
        return _name(shape) in self._chosen

    def get(self, shape: Shape) -> Offer | None:
        """The choice for a shape that is there."""
        return self._chosen[_name(shape)]

    def describe(self) -> str:
        """For people, and to tell apart what computes other bits: how many are not torch's, and a digest."""
        chosen = {name: offer for name, offer in sorted(self._chosen.items()) if offer is not None}
        digest = hashlib.sha256(repr(chosen).encode()).hexdigest()[:8]
        return f"{len(chosen)} of {len(self._chosen)} kinds by measured algorithms ({digest})"

    def keep(self, shape: Shape, offer: Offer | None) -> None:
        """Remember a choice. A place that cannot be written is no reason not to serve."""
        self._chosen[_name(shape)] = offer
        document = {
            name: None if one is None else {"words": list(one.words), "workspace_bytes": one.workspace_bytes}
            for name, one in sorted(self._chosen.items())
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Another process may look at any moment: the file appears complete or not at all.
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, delete=False, encoding="utf-8"
            ) as file:
                json.dump(document, file, indent=1)
            os.replace(file.name, self._path)
        except OSError as error:
            logger.warning("the choice of products cannot be remembered in %s: %s", self._path, error)


def _read(path: pathlib.Path) -> dict[str, Offer | None]:
    try:
        document = json.loads(path.read_text("utf-8"))
        return {
            name: None if one is None else Offer(tuple(map(int, one["words"])), int(one["workspace_bytes"]))
            for name, one in document.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("the remembered choice of products is unreadable and made again: %s", error)
        return {}


def _name(shape: Shape) -> str:
    rows = -(-shape.rows // ROWS_APART) * ROWS_APART
    epilogue = " bias" * shape.bias + " gelu" * shape.gelu
    return f"{rows}x{shape.width}x{shape.depth}{epilogue}"
