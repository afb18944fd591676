"""A valid request for each environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.support.libero import libero_observation
from vlad_client.observations import random_observation


def observation_for(environment: str, seed: int = 0) -> dict[str, Any]:
    """What our own client sends at random, so that daemon and client are held against each other."""
    if environment == "LIBERO":
        return libero_observation(seed)
    return random_observation(environment, np.random.default_rng(seed))
