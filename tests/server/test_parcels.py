"""Requests in shared memory: which slots they take, and that they give them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vlad_server.parcels import Parcel, ParcelStore, Work


def _nobody(outcome: Any) -> None:
    raise AssertionError(f"nobody waits for {outcome}")


def _pack(store: ParcelStore, value: Any) -> Parcel:
    return store.pack(Work({"image": value}, _nobody))


def test_the_lowest_free_slot_is_taken_first() -> None:
    store = ParcelStore(8, 1000)
    first, second, third = (_pack(store, np.full(10, number, np.uint8)) for number in range(3))
    assert [first.slot, second.slot, third.slot] == [0, 1, 2]
    store.free(second)
    store.free(first)
    assert _pack(store, np.zeros(1)).slot == 0
    observation = store.slots.load_observation(third.outline)
    np.testing.assert_array_equal(observation["image"], np.full(10, 2, np.uint8))


@pytest.mark.parametrize("value", [np.zeros(2 << 20, np.uint8), object(), 1 << 70])
def test_what_cannot_be_packed_takes_no_slot(value: Any) -> None:
    store = ParcelStore(1, 1000)
    for _ in range(3):
        with pytest.raises((OverflowError, TypeError, ValueError)):
            _pack(store, value)
    assert _pack(store, np.zeros(1)).slot == 0
