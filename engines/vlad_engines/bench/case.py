"""What is measured: one network, one request shape, one backend."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import ConfigError
from vlad_configs.models import CAMERA_SLOTS, ModelConfig
from vlad_engines.processing.model_inputs import ModelInputs

_FIRST_TEXT_TOKEN = 4
"""Lower ids are padding, end, begin and unknown in PaliGemma's vocabulary."""


@dataclasses.dataclass(frozen=True)
class RequestShape:
    """The size of a request.

    Attributes:
        cameras: real cameras, 1 to 3.
        prompt_tokens: real prompt tokens.
    """

    cameras: int
    prompt_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.cameras <= len(CAMERA_SLOTS):
            raise ConfigError(f"--cameras must lie in 1..{len(CAMERA_SLOTS)}, not {self.cameras}")
        if self.prompt_tokens < 1:
            raise ConfigError(f"--prompt-tokens must be at least 1, not {self.prompt_tokens}")


def model_inputs(model: ModelConfig, shape: RequestShape, seed: int) -> ModelInputs:
    """A request of random content. What is in it changes no timing; that it differs between samples might.

    Raises:
        ConfigError: for a prompt longer than the model takes.
    """
    if shape.prompt_tokens > model.max_token_len:
        raise ConfigError(
            f"--prompt-tokens {shape.prompt_tokens} exceeds the model's max_token_len {model.max_token_len}"
        )
    random = np.random.Generator(np.random.PCG64(seed))
    size = model.siglip.image_size
    tokens = np.zeros(model.max_token_len, np.int64)
    tokens[: shape.prompt_tokens] = random.integers(_FIRST_TEXT_TOKEN, model.vocab_size, shape.prompt_tokens)
    return ModelInputs(
        cameras=CAMERA_SLOTS[: shape.cameras],
        images=random.integers(256, size=(shape.cameras, size, size, 3), dtype=np.uint8),
        tokens=tokens,
        token_mask=np.arange(model.max_token_len) < shape.prompt_tokens,
        state=random.uniform(-1.0, 1.0, model.action_dim),
        robot_state=np.zeros(model.action_dim),
    )


def noise(model: ModelConfig, batch: int) -> npt.NDArray[np.float32]:
    """Where the flow of a batch starts, `[batch, H, A]`."""
    shape = (batch, model.action_horizon, model.action_dim)
    return np.random.Generator(np.random.PCG64(0)).standard_normal(shape, dtype=np.float32)
