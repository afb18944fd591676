"""A GPU through pycuda, on the primary context, which torch and TensorRT use too.

Never `pycuda.autoinit`: it makes a context of its own, in which the others' streams are invalid handles.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from vlad_configs.errors import ConfigError, EngineError
from vlad_engines.backends.tensorrt.cuda_graph import CudaGraph
from vlad_engines.backends.tensorrt.device import Device, HostArray


def open_device(name: str) -> Device:
    """Open `cuda` or `cuda:N`.

    Raises:
        ConfigError: where pycuda, the driver or the device is not there.
    """
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        raise ConfigError(
            f"CUDA cannot be loaded ({error}); install the 'tensorrt' extra on a machine with an NVIDIA "
            "driver"
        ) from error
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        raise ConfigError(f"device '{name}' is not there: {error}") from error
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(f"device '{name}' is not there: CUDA sees {count} devices")
    # A cast, because streams, events and memory of one device only ever meet each other.
    return cast("Device", CudaDevice(driver, driver.Device(index)))


class CudaStream:
    """See `device.Stream`."""

    def __init__(self, stream: Any) -> None:
        self.raw = stream

    @property
    def handle(self) -> int:
        return int(self.raw.handle)

    def wait_for(self, event: CudaEvent) -> None:
        self.raw.wait_for_event(event.raw)


class CudaEvent:
    """See `device.Event`.

    Goes back to `spares` at its end: pycuda destroys an event only in the thread that made it, and the one
    that waits for requests is another.
    """

    def __init__(self, event: Any, spares: list[Any]) -> None:
        self.raw = event
        self._spares = spares

    def __del__(self) -> None:
        self._spares.append(self.raw)

    def record(self, stream: CudaStream) -> None:
        self.raw.record(stream.raw)

    def synchronize(self) -> None:
        self.raw.synchronize()

    def seconds_since(self, earlier: CudaEvent) -> float:
        return float(earlier.raw.time_till(self.raw)) * 1e-3


class CudaMemory:
    """See `device.Memory`. The allocation ends with the object."""

    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation
        self.address = int(allocation)


class CudaDevice:
    """See `device.Device`."""

    def __init__(self, driver: Any, device: Any) -> None:
        self._driver = driver
        self._device = device
        self._context = device.retain_primary_context()
        self._spare_events: list[Any] = []

    @property
    def name(self) -> str:
        return str(self._device.name())

    @property
    def compute_capability(self) -> str:
        major, minor = self._device.compute_capability()
        return f"{major}.{minor}"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._driver.Context.pop()

    def free_bytes(self) -> int:
        free, _ = self._driver.mem_get_info()
        return int(free)

    def allocate(self, size_bytes: int) -> CudaMemory:
        try:
            return CudaMemory(self._driver.mem_alloc(max(1, size_bytes)))
        except self._driver.MemoryError as error:
            raise EngineError(
                f"{self.name} has no {size_bytes >> 20} MiB left ({self.free_bytes() >> 20} MiB are free)"
            ) from error

    def host_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostArray:
        array: HostArray = self._driver.pagelocked_zeros(shape, dtype)
        return array

    def create_stream(self) -> CudaStream:
        # Not the legacy default stream, nor one that waits for it: components must be able to overlap.
        return CudaStream(self._driver.Stream(flags=_NON_BLOCKING))

    def create_event(self) -> CudaEvent:
        try:
            event = self._spare_events.pop()
        except IndexError:
            event = self._driver.Event()
        return CudaEvent(event, self._spare_events)

    def upload(self, address: int, array: HostArray, stream: CudaStream) -> None:
        self._driver.memcpy_htod_async(address, array, stream.raw)

    def download(self, array: HostArray, address: int, stream: CudaStream) -> None:
        self._driver.memcpy_dtoh_async(array, address, stream.raw)

    def capture(self, stream: CudaStream, work: Callable[[], None]) -> CudaGraph:
        return CudaGraph(stream.handle, work)


_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING."""
