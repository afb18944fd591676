"""The tables of the rotary embedding."""

from __future__ import annotations

import math

import torch

from vlad_engines.model.rope import rope_tables

LONGEST = 978
"""Positions of pi0.5 with three cameras, 200 prompt tokens and a chunk of 10."""


def test_every_position_has_the_cosine_and_sine_of_its_float32_angle() -> None:
    cos, sin = rope_tables(head_dim=256, length=LONGEST)
    assert cos.shape == sin.shape == (LONGEST, 128)
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, 256, 2, dtype=torch.float32) / 256)
    for position in range(LONGEST):
        for column in (0, 1, 17, 127):
            angle = float(torch.tensor(position, dtype=torch.float32) * frequencies[column])
            assert abs(float(cos[position, column]) - math.cos(angle)) < 1e-7
            assert abs(float(sin[position, column]) - math.sin(angle)) < 1e-7
