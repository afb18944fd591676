"""What the device does about pycuda, with a stand-in for the driver."""

from __future__ import annotations

import types
from typing import Any

from vlad_engines.backends.tensorrt.cuda_device import CudaDevice


def test_events_are_used_again_and_never_destroyed() -> None:
    made: list[Any] = []

    def make_event() -> object:
        made.append(object())
        return made[-1]

    driver = types.SimpleNamespace(Event=make_event)
    device = CudaDevice(driver, types.SimpleNamespace(retain_primary_context=object))
    first, second = device.create_event(), device.create_event()
    assert first.raw is not second.raw
    gone = first.raw
    del first
    assert device.create_event().raw is gone
    assert len(made) == 2
