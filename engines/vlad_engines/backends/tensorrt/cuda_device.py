"""A GPU through pycuda, on the primary context, which torch and TensorRT use too.

Never `pycuda.autoinit`: it makes a context of its own, in which the others' streams are invalid handles.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np

from vlad_configs.errors import ConfigError, EngineError
from vlad_engines.backends.tensorrt.cuda_driver import call, create_stream, create_stream_beside
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

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def wait_for(self, event: CudaEvent) -> None:
        call("cuStreamWaitEvent", ctypes.c_void_p(self.handle), event.handle, 0)


class CudaEvent:
    """See `device.Event`. Goes back to `spares` at its end, which may come in any thread."""

    def __init__(self, handle: ctypes.c_void_p, spares: list[ctypes.c_void_p]) -> None:
        self.handle = handle
        self._spares = spares

    def __del__(self) -> None:
        self._spares.append(self.handle)

    def record(self, stream: CudaStream) -> None:
        call("cuEventRecord", self.handle, ctypes.c_void_p(stream.handle))

    def synchronize(self) -> None:
        call("cuEventSynchronize", self.handle)

    def seconds_since(self, earlier: CudaEvent) -> float:
        milliseconds = ctypes.c_float()
        call("cuEventElapsedTime", ctypes.byref(milliseconds), earlier.handle, self.handle)
        return milliseconds.value * 1e-3


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
        self._spare_events: list[ctypes.c_void_p] = []

    @property
    def name(self) -> str:
        return str(self._device.name())

    @property
    def compute_capability(self) -> str:
        major, minor = self._device.compute_capability()
        return f"{major}.{minor}"

    @property
    def multiprocessors(self) -> int:
        count = self._driver.device_attribute.MULTIPROCESSOR_COUNT
        return int(self._device.get_attribute(count))

    @property
    def total_bytes(self) -> int:
        return int(self._device.total_memory())

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

    def create_stream(self, *, urgent: bool = False, spared: int = 0) -> CudaStream:
        if spared:
            return CudaStream(create_stream_beside(spared))
        return CudaStream(create_stream(urgent))

    def create_event(self) -> CudaEvent:
        try:
            event = self._spare_events.pop()
        except IndexError:
            event = ctypes.c_void_p()
            call("cuEventCreate", ctypes.byref(event), 0)
        return CudaEvent(event, self._spare_events)

    def upload(self, address: int, array: HostArray, stream: CudaStream) -> None:
        source, target = ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(address)
        size, handle = ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream.handle)
        call("cuMemcpyHtoDAsync_v2", target, source, size, handle)

    def download(self, array: HostArray, address: int, stream: CudaStream) -> None:
        source, target = ctypes.c_uint64(address), ctypes.c_void_p(array.ctypes.data)
        size, handle = ctypes.c_size_t(array.nbytes), ctypes.c_void_p(stream.handle)
        call("cuMemcpyDtoHAsync_v2", target, source, size, handle)

    def capture(self, stream: CudaStream, work: Callable[[], None]) -> CudaGraph:
        return CudaGraph(stream.handle, work)
