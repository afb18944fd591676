"""A batch of observations in which only what is really there takes up room."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Observation:
    """What the network looks at. Counts are plain integers, so that shapes never depend on a device.

    Attributes:
        pixels: `[N, 3, 224, 224]` float32 in [-1, 1]: the real cameras of sample 0 in slot order, then
            those of sample 1, and so on.
        camera_counts: number of real cameras of each sample; they add up to N.
        tokens: `[B, L]` int64, the real prompt tokens of each sample first.
        token_counts: number of real prompt tokens of each sample.
        state: `[B, action_dim]` float32, normalised and padded. pi0.5 does not look at it.
    """

    pixels: Tensor
    camera_counts: tuple[int, ...]
    tokens: Tensor
    token_counts: tuple[int, ...]
    state: Tensor

    def __post_init__(self) -> None:
        if not len(self.camera_counts) == len(self.token_counts) == len(self.tokens) == len(self.state):
            raise ValueError("camera_counts, tokens, token_counts and state disagree about the batch size")
        if sum(self.camera_counts) != len(self.pixels):
            raise ValueError(f"{sum(self.camera_counts)} cameras announced, {len(self.pixels)} images given")
        if max(self.token_counts) > self.tokens.shape[1]:
            raise ValueError(f"{max(self.token_counts)} tokens announced, {self.tokens.shape[1]} given")

    @classmethod
    def from_padded(
        cls, images: Tensor, image_mask: Tensor, tokens: Tensor, token_mask: Tensor, state: Tensor
    ) -> Observation:
        """Leave out masked cameras and padding. That is exact: nobody attends to them, and positions
        count only what is left.

        Args:
            images: `[B, C, 3, 224, 224]` float32.
            image_mask: `[B, C]` bool, True for a real camera.
            tokens: `[B, L]` integers.
            token_mask: `[B, L]` bool, True for a real token.
            state: `[B, action_dim]`.
        """
        real_first = token_mask.int().argsort(dim=1, descending=True, stable=True)
        return cls(
            pixels=images[image_mask],
            camera_counts=tuple(image_mask.sum(dim=1).tolist()),
            tokens=tokens.long().gather(1, real_first),
            token_counts=tuple(token_mask.sum(dim=1).tolist()),
            state=state.float(),
        )
