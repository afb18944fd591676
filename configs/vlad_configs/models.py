"""Shapes of the pi0 / pi0.5 family: SigLIP, the PaliGemma prefix, the Gemma action expert.

Sizes are those of openpi's `models/gemma.py` and of SigLIP So400m/14.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vlad_configs.errors import ConfigError

Family = Literal["pi0", "pi05"]

CAMERA_SLOTS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
"""The three camera slots of the model, in the order of the prefix."""

IMAGE_SIZE = 224
"""Height and width of a model image in pixels."""


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """One Gemma stack. `width` is the residual width, `mlp_dim` the hidden width of the GeGLU."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """A SigLIP vision tower without pooling head; one token per patch."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: int = 14
    image_size: int = IMAGE_SIZE

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError(f"SigLIP width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )

    @property
    def num_tokens(self) -> int:
        """Image tokens per camera."""
        return (self.image_size // self.patch_size) ** 2


GEMMA_VARIANTS: Mapping[str, GemmaConfig] = {
    "dummy": GemmaConfig(64, 4, 128, 8, 1, 16),
    "gemma_300m": GemmaConfig(1024, 18, 4096, 8, 1, 256),
    "gemma_2b": GemmaConfig(2048, 18, 16384, 8, 1, 256),
}

SIGLIP_SO400M = SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the shapes of one pi0 / pi0.5 network.

    Attributes:
        family: `pi0` (state token, time mixed into the action tokens) or `pi05` (adaRMS, no state token).
        action_dim: padded width of states and actions inside the model.
        action_horizon: number of actions in a chunk.
        max_token_len: length to which prompts are padded or cut.
    """

    family: Family
    siglip: SiglipConfig = SIGLIP_SO400M
    vlm: GemmaConfig = GEMMA_VARIANTS["gemma_2b"]
    expert: GemmaConfig = GEMMA_VARIANTS["gemma_300m"]
    vocab_size: int = 257152
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int = 48

    def __post_init__(self) -> None:
        if self.family not in ("pi0", "pi05"):
            raise ConfigError(f"family must be 'pi0' or 'pi05', not {self.family!r}")
        for field in ("depth", "num_heads", "num_kv_heads", "head_dim"):
            vlm, expert = getattr(self.vlm, field), getattr(self.expert, field)
            if vlm != expert:
                raise ConfigError(f"prefix and expert must share {field}: {vlm} against {expert}")
        for field in ("action_dim", "action_horizon", "max_token_len", "vocab_size"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field} must be at least 1, not {getattr(self, field)}")

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain JSON types; `from_json` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: for unknown or missing keys, or contradictory values.
        """
        values = dict(data)
        try:
            values["siglip"] = SiglipConfig(**values["siglip"])
            values["vlm"] = GemmaConfig(**values["vlm"])
            values["expert"] = GemmaConfig(**values["expert"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"unreadable model configuration: {error}") from error
