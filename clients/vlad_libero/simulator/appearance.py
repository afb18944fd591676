"""Other colours, textures and light for the same scene, so that a policy does not learn ours by heart."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_libero.assets.textures import smooth_noise
from vlad_libero.simulator.simulator import Simulator

# What is drawn on floor, wall, table and cabinet; each may get another pattern.
_PATTERNED = ("texplane", "tex-wall", "tex-table", "grain")


@dataclasses.dataclass(frozen=True)
class AppearanceRange:
    """How far a scene may look different.

    Attributes:
        unchanged: share of scenes that keep the original look, 0 to 1.
        colour: largest change of each colour channel of an object's material, 0 to 1.
        light: largest relative change of the light, 0 to 1.
        pattern: share of floors, walls, tables and cabinets that get a new pattern, 0 to 1.
    """

    unchanged: float = 0.3
    colour: float = 0.10
    light: float = 0.3
    pattern: float = 0.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise ValueError(f"{field.name} must be in 0..1, not {getattr(self, field.name)}")


class Appearance:
    """Changes the look of one simulator's scene, always starting from the original one."""

    def __init__(self, simulator: Simulator, limits: AppearanceRange) -> None:
        self._model: Any = simulator._model
        self._cameras = simulator._drawing()
        self._limits = limits
        self._colours = self._model.mat_rgba.copy()
        self._lights = self._model.light_diffuse.copy()
        self._pixels = self._model.tex_data.copy()
        self._repainted: set[int] = set()

    def draw(self, rng: np.random.Generator) -> None:
        """Take a new look; both bowls get the same colour, since the instruction tells them apart."""
        self._restore()
        if rng.random() < self._limits.unchanged:
            return
        groups = [_kind(self._model.mat(index).name) for index in range(self._model.nmat)]
        for group in sorted(set(groups)):
            change = rng.uniform(-self._limits.colour, self._limits.colour, 3)
            for index in (index for index, other in enumerate(groups) if other == group):
                self._model.mat_rgba[index, :3] = np.clip(self._colours[index, :3] + change, 0.02, 1)
        scale = 1 + rng.uniform(-self._limits.light, self._limits.light, (len(self._lights), 1))
        self._model.light_diffuse[:] = np.clip(self._lights * scale, 0, 1)
        for index in range(self._model.ntex):
            if self._model.tex(index).name.endswith(_PATTERNED) and rng.random() < self._limits.pattern:
                self._repaint(index, rng)

    def _restore(self) -> None:
        self._model.mat_rgba[:] = self._colours
        self._model.light_diffuse[:] = self._lights
        self._model.tex_data[:] = self._pixels
        for index in self._repainted:
            self._cameras.upload_texture(index)
        self._repainted.clear()

    def _repaint(self, texture: int, rng: np.random.Generator) -> None:
        height, width = int(self._model.tex_height[texture]), int(self._model.tex_width[texture])
        start = int(self._model.tex_adr[texture])
        pixels = self._model.tex_data[start : start + height * width * 3]
        original = pixels.reshape(height, width, 3)
        original[:] = pattern(original.mean(axis=(0, 1)) / 255, height, width, rng)
        self._cameras.upload_texture(texture)
        self._repainted.add(texture)


def pattern(
    colour: npt.NDArray[np.float64], height: int, width: int, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """A pattern around a colour, uint8 [height, width, 3]: blotches, stripes or tiles.

    Args:
        colour: mean to start from, [3] in 0..1.
    """
    side = max(height, width)
    cells = [(6, 6), (2, 32), (32, 2), (48, 48)][rng.integers(4)]
    base = np.clip(colour + rng.uniform(-0.25, 0.25, 3), 0.05, 0.95)
    contrast = rng.uniform(0.02, 0.25)
    noise = smooth_noise(rng, cells, side)[:height, :width]
    return (255 * np.clip(base + contrast * (noise[..., None] - 0.5), 0, 1)).astype(np.uint8)


def _kind(material: str) -> str:
    """A material's name without the number of its object."""
    return re.sub(r"_\d+(?=_|$)", "", material)
