"""What the device asks of the CUDA driver, with a stand-in for it."""

# Methods have the names of the driver's functions.
# ruff: noqa: N802

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from typing import Any

import pytest

from vlad_configs.errors import EngineError
from vlad_engines.backends.tensorrt import cuda_driver
from vlad_engines.backends.tensorrt.cuda_device import CudaDevice
from vlad_engines.backends.tensorrt.cuda_graph import CudaGraph

MULTIPROCESSORS = 132


class Driver:
    """As much of libcuda as streams, events and graphs need. Handles count up; `calls` has every name."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.priorities: dict[int, int] = {}
        self.failing: dict[str, int] = {}
        self._handles = iter(range(1, 1000))

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("_") or name == "cuMissing":
            raise AttributeError(name)

        def entry(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            getattr(self, f"_{name}", lambda *_: None)(*(getattr(part, "_obj", part) for part in arguments))
            return 0

        return entry

    def _cuGetErrorString(self, code: int, text: Any) -> None:
        text.value = b"invalid argument"

    def _cuCtxGetStreamPriorityRange(self, least: Any, greatest: Any) -> None:
        least.value, greatest.value = 0, -5

    def _cuStreamCreateWithPriority(self, stream: Any, flags: int, priority: Any) -> None:
        stream.value = next(self._handles)
        self.priorities[stream.value] = priority.value

    def _cuEventCreate(self, event: Any, flags: int) -> None:
        event.value = next(self._handles)

    def _cuEventElapsedTime(self, milliseconds: Any, begin: Any, end: Any) -> None:
        milliseconds.value = end.value - begin.value

    def _cuDeviceGetDevResource(self, device: Any, resource: Any, kind: int) -> None:
        resource.multiprocessors = MULTIPROCESSORS

    def _cuDevSmResourceSplitByCount(self, *arguments: Any) -> None:
        group, _, whole, rest, _, count = arguments
        group.multiprocessors, rest.multiprocessors = count.value, whole.multiprocessors - count.value

    def _cuGreenCtxStreamCreate(self, stream: Any, *rest: Any) -> None:
        stream.value = next(self._handles)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    stand_in = Driver()
    monkeypatch.setattr(cuda_driver, "_driver", lambda: stand_in)
    return stand_in


def test_memory_is_the_drivers_word() -> None:
    bindings = types.SimpleNamespace(mem_get_info=lambda: (5 << 30, 8 << 30))
    gpu = types.SimpleNamespace(retain_primary_context=object, total_memory=lambda: 8 << 30)
    device = CudaDevice(bindings, gpu)
    assert (device.free_bytes(), device.total_bytes) == (5 << 30, 8 << 30)


def make_device() -> CudaDevice:
    return CudaDevice(types.SimpleNamespace(), types.SimpleNamespace(retain_primary_context=object))


def test_events_are_used_again_and_never_destroyed(driver: Driver) -> None:
    device = make_device()
    first, second = device.create_event(), device.create_event()
    assert first.handle.value != second.handle.value
    assert second.seconds_since(first) == pytest.approx(1e-3)
    gone = first.handle.value
    del first
    assert device.create_event().handle.value == gone
    assert driver.calls.count("cuEventCreate") == 2


def test_urgent_streams_go_first(driver: Driver) -> None:
    device = make_device()
    plain, urgent = device.create_stream(), device.create_stream(urgent=True)
    assert (driver.priorities[plain.handle], driver.priorities[urgent.handle]) == (0, -5)


def test_a_stream_leaves_multiprocessors_to_others(driver: Driver) -> None:
    assert make_device().create_stream(spared=16).handle > 0
    assert driver.calls[-1] == "cuGreenCtxStreamCreate"
    with pytest.raises(EngineError, match="132 of 132 multiprocessors cannot be split off"):
        make_device().create_stream(spared=MULTIPROCESSORS)


def test_errors_of_the_driver_are_named(driver: Driver) -> None:
    driver.failing["cuGreenCtxCreate"] = 1
    with pytest.raises(EngineError, match="cuGreenCtxCreate failed with CUDA error 1: invalid argument"):
        make_device().create_stream(spared=8)
    with pytest.raises(EngineError, match="this CUDA driver has no cuMissing"):
        cuda_driver.call("cuMissing")


def test_a_capture_ends_whatever_happens_inside(driver: Driver) -> None:
    def fail() -> None:
        raise EngineError("the engine cannot be run")

    with pytest.raises(EngineError, match="the engine cannot be run"):
        CudaGraph(7, fail)
    assert driver.calls == ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphDestroy"]


def test_the_resource_has_the_size_that_the_driver_expects() -> None:
    assert ctypes.sizeof(cuda_driver._Resource) == 144
    assert cuda_driver._Resource.multiprocessors.offset == 96
