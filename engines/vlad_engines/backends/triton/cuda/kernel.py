"""One CUDA kernel: compiled once for a set of definitions, remembered on disk, launched on torch's stream."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import torch

from vlad_configs.errors import ConfigError, EngineError
from vlad_engines.checkpoint.demo import cache_directory

logger = logging.getLogger("vlad.triton")

_FOLDER = "kernels"


class CudaKernel:
    """The kernel called `path.stem` of one source file.

    Args:
        path: the source; it includes nothing.
        definitions: macros that the source expects.
        cache: where compiled kernels are kept; None for the user's cache directory.

    Raises:
        ConfigError: without `cuda.bindings`.
        EngineError: where the source does not compile; the text holds the compiler's log.
    """

    def __init__(
        self, path: pathlib.Path, definitions: Mapping[str, int], *, cache: pathlib.Path | None = None
    ) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise ConfigError(
                "backend 'triton' needs the package cuda-bindings, which PyTorch for CUDA brings"
            ) from error
        self._driver = driver
        major, minor = torch.cuda.get_device_capability()
        options = [f"--gpu-architecture=sm_{major}{minor}a", "--std=c++17"]
        options += [f"-D{name}={value}" for name, value in sorted(definitions.items())]
        binary = _compiled(path, options, cache_directory() / _FOLDER if cache is None else cache)
        self._module = _checked(driver.cuModuleLoadData(binary))
        self._function = _checked(driver.cuModuleGetFunction(self._module, path.stem.encode()))
        address, size = _checked(driver.cuModuleGetGlobal(self._module, b"shared_bytes"))
        shared = ctypes.c_int()
        _checked(driver.cuMemcpyDtoH(ctypes.addressof(shared), address, size))
        self.shared_bytes = shared.value
        limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(self._function, limit, self.shared_bytes))

    def launch(self, blocks: int, threads: int, arguments: ctypes.Structure) -> None:
        """Enqueue; all blocks run at the same time, so that they may wait for each other.

        Args:
            arguments: the kernel's only parameter; copied before this returns.
        """
        driver = self._driver
        attribute = driver.CUlaunchAttribute()
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        attribute.value.cooperative = 1
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = self.shared_bytes
        config.hStream = torch.cuda.current_stream().cuda_stream
        config.attrs, config.numAttrs = [attribute], 1
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _checked(driver.cuLaunchKernelEx(config, self._function, ctypes.addressof(parameters), 0))


def _compiled(path: pathlib.Path, options: list[str], folder: pathlib.Path) -> bytes:
    from cuda.bindings import nvrtc

    source = path.read_bytes()
    version = _checked(nvrtc.nvrtcVersion())
    digest = hashlib.sha256(repr((source, options, version)).encode()).hexdigest()
    remembered = folder / f"{path.stem}-{digest[:32]}.cubin"
    try:
        return remembered.read_bytes()
    except OSError:
        pass
    program = _checked(nvrtc.nvrtcCreateProgram(source, path.name.encode(), 0, [], []))
    encoded = [option.encode() for option in options]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
    if int(result) != 0:
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        raise EngineError(f"{path.name} does not compile: {log.decode(errors='replace')}")
    binary = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, binary))
    _remember(remembered, bytes(binary))
    return bytes(binary)


def _remember(path: pathlib.Path, binary: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(binary)
        os.replace(file.name, path)
    except OSError as error:
        logger.warning("a compiled kernel cannot be kept for the next start: %s", error)


def _checked(result: tuple[Any, ...]) -> Any:
    """The values behind a status of `cuda.bindings`."""
    status, *values = result
    if int(status) != 0:
        raise EngineError(f"CUDA: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
