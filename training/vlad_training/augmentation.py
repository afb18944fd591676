"""Random crop and rotation, or shift, and colours of a batch of images.

Drawn per sample, as openpi's JAX trainer does. Crop and rotation are one resampling instead of two in a
row, which blurs less.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vlad_configs.training import Augmentation


def augment(images: Tensor, changes: Tensor, moving: Tensor, augmentation: Augmentation) -> Tensor:
    """Change a batch of images.

    Args:
        images: `[N, 3, S, S]` float32 in 0..1.
        changes: `[N, 6]`, see `draws.Draws.image`.
        moving: `[N]` bool; only these are cropped and rotated (not the wrists'). All are shifted.

    Returns:
        A new `[N, 3, S, S]` float32 in 0..1; what a rotation or shift uncovers is black.
    """
    if augmentation.shift:
        images = _shifted(images, changes, augmentation.shift)
    elif augmentation.crop < 1 or augmentation.rotation_degrees:
        grid = F.affine_grid(_affine(changes, moving, augmentation), list(images.shape), align_corners=False)
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    brightness, contrast, saturation = (
        (1 + amount * changes[:, 3 + index])[:, None, None, None]
        for index, amount in enumerate(
            (augmentation.brightness, augmentation.contrast, augmentation.saturation)
        )
    )
    images = images * brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    images = (images - mean) * contrast + mean
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * saturation + grey
    return images.clamp(0, 1)


def _shifted(images: Tensor, changes: Tensor, shift: float) -> Tensor:
    """Images moved by whole pixels, so that they stay as sharp as those seen when serving."""
    side = images.shape[-1]
    rows, columns = ((changes[:, index] * 2 - 1).mul(shift * side).round().long() for index in (0, 1))
    place = torch.arange(side, device=images.device)
    margin = math.ceil(shift * side)
    padded = F.pad(images, (margin,) * 4)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    row = (place + margin + rows[:, None])[:, :, None]
    column = (place + margin + columns[:, None])[:, None, :]
    # Indices on both sides of the slice put its axis last.
    return padded[sample, :, row, column].permute(0, 3, 1, 2)


def _affine(changes: Tensor, moving: Tensor, augmentation: Augmentation) -> Tensor:
    """`[N, 2, 3]`: where each place of the new image lies in the old one, both in -1..1."""
    crop = augmentation.crop
    angle = changes[:, 2] * math.radians(augmentation.rotation_degrees)
    free = 1 - crop
    row, column = (changes[:, index] * 2 * free - free for index in (0, 1))
    cos, sin = crop * angle.cos(), crop * angle.sin()
    moved = torch.stack((torch.stack((cos, -sin, column), 1), torch.stack((sin, cos, row), 1)), 1)
    still = torch.eye(2, 3, device=changes.device).expand_as(moved)
    return torch.where(moving[:, None, None], moved, still)
