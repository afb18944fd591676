"""Buffers that a captured graph can be bound to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.tiny_networks import tiny_config
from vlad_configs.errors import EngineError
from vlad_engines.guidance_buffers import GuidanceBuffers
from vlad_engines.processing.guidance import Guidance

CONFIG = tiny_config("pi05")
CHUNK = (CONFIG.action_horizon, CONFIG.action_dim)


def guidance(value: float = 1.0, steps: int = 4, frozen: int = 0) -> Guidance:
    rows, gains = np.full(CHUNK, value, np.float32), np.ones(steps, np.float32)
    return Guidance("trained" if frozen else "guided_identity", rows, rows, gains, frozen)


def make(batch: int = 2) -> GuidanceBuffers:
    return GuidanceBuffers(CONFIG, 4, torch.device("cpu"), batch)


def test_new_buffers_guide_nothing() -> None:
    assert not any(part.any() for part in make().device)


def test_each_request_has_its_own_rows_and_none_leaves_zeros() -> None:
    buffers = make()
    addresses = [part.data_ptr() for part in buffers.device]
    buffers.fill([guidance(frozen=2), guidance(3.0)])
    buffers.upload()
    buffers.fill([None, guidance(2.0)])
    assert buffers.device.frozen.tolist() == [2, 0]
    buffers.upload()
    assert [part.data_ptr() for part in buffers.device] == addresses
    for part in buffers.device:
        assert not part[0].any()
    assert (buffers.device.weights[1] == 2.0).all()
    assert buffers.device.frozen.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [[guidance()], [guidance(), guidance(steps=3)]])
def test_what_does_not_fit_is_refused_and_changes_nothing(wrong: list[Guidance]) -> None:
    buffers = make()
    with pytest.raises(EngineError, match=r"guidance for 1 requests|with 4 gains"):
        buffers.fill(wrong)
    buffers.upload()
    assert not any(part.any() for part in buffers.device)
