"""What the processing hands to a backend for one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_engines.processing.guidance import Guidance


@dataclasses.dataclass(frozen=True)
class ModelInputs:
    """One observation, ready for the network; no batch axis, only what is really there.

    Attributes:
        cameras: names of the model's camera slots that carry an image, in slot order.
        images: `[C, S, S, 3]`, C = len(cameras), S the model's image size. Either uint8 in 0..255, or
            float32 in [-1, 1].
        tokens: `[L]` int64, prompt token ids padded with 0 to the contract's max_token_len.
        token_mask: `[L]` bool, True for real tokens; real tokens come first.
        state: `[action_dim]` float64, normalised and padded with zeros.
        robot_state: `[state width]` float64, after the environment's own conversion, not normalised;
            the anchor of delta actions.
        guidance: how the chunk continues an earlier one; None for plain sampling. Only for backends that
            say that they can (`capabilities.Guided`).
        notes: what is odd about the observation, plain msgpack types: `cut_tokens`, how many tokens of the
            prompt did not fit; `state_outside`, pairs of an index of the state and its normalised value, for
            those far from what the statistics know. Missing where there is nothing to say.
    """

    cameras: tuple[str, ...]
    images: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    tokens: npt.NDArray[np.int64]
    token_mask: npt.NDArray[np.bool_]
    state: npt.NDArray[np.float64]
    robot_state: npt.NDArray[np.float64]
    guidance: Guidance | None = None
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
