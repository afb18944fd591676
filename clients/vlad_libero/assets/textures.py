"""Pictures from noise: floor tiles, plaster, wood."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

_SIDE = 256


def smooth_noise(rng: np.random.Generator, cells: tuple[int, int], side: int) -> npt.NDArray[np.float64]:
    """Noise [side, side] in 0..1 that repeats at the edges: random cells, joined by half cosines."""
    grid = rng.random(cells)
    for axis, count in enumerate(cells):
        place = np.arange(side) * count / side
        low = place.astype(int)
        share = (1 - np.cos(np.pi * (place - low))) / 2
        shape = (-1, 1) if axis == 0 else (1, -1)
        share = share.reshape(shape)
        grid = np.take(grid, low, axis) * (1 - share) + np.take(grid, (low + 1) % count, axis) * share
    return grid


def floor_tiles() -> Image:
    """Light tiles with joints, uint8 [side, side, 3]."""
    rng = np.random.default_rng(1)
    shade = 0.80 + 0.05 * (smooth_noise(rng, (24, 24), _SIDE) - 0.5)
    place = np.arange(_SIDE) % (_SIDE // 2)
    joint = (place < 3)[:, None] | (place < 3)[None, :]
    return _coloured(np.where(joint, 0.62, shade), (1.0, 0.99, 0.97))


def plaster() -> Image:
    """A light wall, uint8 [side, side, 3]."""
    rng = np.random.default_rng(2)
    grain = sum(smooth_noise(rng, (cells, cells), _SIDE) / 3 for cells in (6, 24, 96))
    return _coloured(0.80 + 0.10 * (np.asarray(grain) - 0.5), (0.98, 0.99, 1.0))


def wood(seed: int, colour: tuple[float, float, float]) -> Image:
    """Boards with a grain along the first axis, uint8 [side, side, 3]."""
    rng = np.random.default_rng(seed)
    waves = smooth_noise(rng, (3, 10), _SIDE)
    fibres = smooth_noise(rng, (6, 128), _SIDE)
    rings = (1 + np.sin(2 * np.pi * 5 * waves)) / 2
    return _coloured(0.86 + 0.10 * (rings - 0.5) + 0.10 * (fibres - 0.5), colour)


def png(image: Image) -> bytes:
    """The image as a PNG file: every row unfiltered, one compressed stream."""
    height, width, _ = image.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), image.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows.tobytes(), 9), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks.items())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _coloured(shade: npt.NDArray[np.float64], colour: tuple[float, float, float]) -> Image:
    return np.asarray(255 * np.clip(shade[..., None] * np.asarray(colour), 0, 1), np.uint8)
