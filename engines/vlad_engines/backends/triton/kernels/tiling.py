"""Sizes of tiles: powers of two that fit the tensors at hand."""

from __future__ import annotations


def power_of_two_divisor(size: int, limit: int) -> int:
    """The largest power of two that divides `size` and is at most `limit`."""
    return min(size & -size, limit)


def padded_rows(rows: int) -> int:
    """Rows of a tile that holds `rows` rows: a power of two, at least the tensor cores' 16."""
    tile = 16
    while tile < rows:
        tile *= 2
    return tile
