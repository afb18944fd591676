"""LIBERO requests for tests."""

from __future__ import annotations

from typing import Any

import numpy as np


def libero_observation(seed: int = 0, prompt: str = "pick up the black bowl") -> dict[str, Any]:
    """A request as the LIBERO evaluator sends it: two 224x224 images, 8 numbers, a prompt."""
    random = np.random.default_rng(seed)
    return {
        "observation/image": random.integers(256, size=(224, 224, 3), dtype=np.uint8),
        "observation/wrist_image": random.integers(256, size=(224, 224, 3), dtype=np.uint8),
        "observation/state": random.random(8),
        "prompt": prompt,
    }
