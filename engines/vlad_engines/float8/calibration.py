"""How large the inputs of the prefix's products become, and how that is noted down. No torch here."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from vlad_configs.errors import ConfigError
from vlad_engines.processing.model_inputs import ModelInputs

Product = Literal["qkv", "out", "gate_up", "down"]
"""The products of a layer by their input: queries, keys and values share one, and so do gate and up."""

PRODUCTS: tuple[Product, ...] = get_args(Product)


@dataclasses.dataclass(frozen=True)
class LayerPeaks:
    """Largest magnitude of the input of each product of one layer, 0 or more.

    Raises:
        ConfigError: for anything that is no finite number of 0 or more.
    """

    qkv: float
    out: float
    gate_up: float
    down: float

    def __post_init__(self) -> None:
        for product in PRODUCTS:
            peak = self.of(product)
            if isinstance(peak, bool) or not isinstance(peak, int | float) or not 0 <= peak < math.inf:
                raise ConfigError(
                    f"calibration: the largest input of {product} must be finite and at least 0, not {peak!r}"
                )

    def of(self, product: Product) -> float:
        """That of one product."""
        peak: float = getattr(self, product)
        return peak


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What observations showed: peaks of every layer of the prefix but the last."""

    layers: tuple[LayerPeaks, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over all peaks: they alone decide the scales of inputs."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> list[dict[str, float]]:
        """Plain JSON types; `from_json` reads them back."""
        return [dataclasses.asdict(layer) for layer in self.layers]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> Calibration:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: for anything else.
        """
        try:
            return cls(tuple(LayerPeaks(**layer) for layer in data))
        except TypeError as error:
            raise ConfigError(f"unreadable calibration: {error}") from error


class PeakRecorder:
    """Notes peaks while the network runs.

    Args:
        depth: layers of the prefix, the last one included.
    """

    def __init__(self, depth: int) -> None:
        self._layers = [dict.fromkeys(PRODUCTS, 0.0) for _ in range(depth - 1)]

    def note(self, layer: int, product: Product, peak: float) -> None:
        """Take in the largest magnitude that one run showed.

        Raises:
            ConfigError: where it is not finite: such a network cannot be calibrated.
        """
        if not math.isfinite(peak):
            raise ConfigError(
                f"calibration: the input of {product} in layer {layer} of the prefix is not finite"
            )
        noted = self._layers[layer]
        noted[product] = max(noted[product], peak)

    def calibration(self) -> Calibration:
        """What was noted so far."""
        return Calibration(tuple(LayerPeaks(**layer) for layer in self._layers))


def inputs_digest(inputs: Sequence[ModelInputs]) -> str:
    """SHA-256 over all that the prefix sees of observations."""
    digest = hashlib.sha256()
    for sample in inputs:
        digest.update(repr(sample.cameras).encode())
        for array in (sample.images, sample.tokens, sample.token_mask):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
