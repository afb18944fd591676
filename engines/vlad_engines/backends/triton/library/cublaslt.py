"""cuBLASLt by ctypes: the algorithms that it offers for a product, and a product by one of them.

torch takes the first algorithm that the library's heuristic names and has no way to ask for another one.
Names and numbers are those of `cublasLt.h`, the same in CUDA 12 and 13.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from vlad_configs.errors import EngineError

WORKSPACE_BYTES = 32 << 20
"""What NVIDIA recommends for Hopper, and torch sets aside."""

_ALGORITHM_WORDS = 8
_COMPUTE_FLOAT32 = 68
_FLOAT32, _BFLOAT16 = 0, 14
_TRANSPOSE_A, _EPILOGUE, _BIAS = 3, 7, 8
_TRANSPOSED = 1
_WITH_BIAS, _WITH_GELU = 4, 32
_MOST_WORKSPACE, _REDUCTIONS = 1, 3
_REDUCTIONS_IN_FLOAT32 = 1 | 2


class _Algorithm(ctypes.Structure):
    """Opaque; may be stored and used again with the same version of the library."""

    _fields_ = [("words", ctypes.c_uint64 * _ALGORITHM_WORDS)]


class _Result(ctypes.Structure):
    _fields_ = [
        ("algorithm", _Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


class Shape(NamedTuple):
    """`out [rows, width] = x [rows, depth] weight [width, depth]^T`, then bias `[width]`, then GELU (tanh).

    All bfloat16, summed in float32.
    """

    rows: int
    width: int
    depth: int
    bias: bool
    gelu: bool


class Offer(NamedTuple):
    """One of the library's algorithms, as `words` of 64 bits, and the memory that it needs beside."""

    words: tuple[int, ...]
    workspace_bytes: int


@functools.cache
def version() -> int:
    """Of the library that torch has loaded: stored algorithms belong to it.

    Raises:
        EngineError: where torch has loaded none.
    """
    _library().cublasLtGetVersion.restype = ctypes.c_size_t
    return int(_library().cublasLtGetVersion())


class Product:
    """The products of one shape. Used by one thread, on the device that is current when it is made."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        rows, width, depth = shape.rows, shape.width, shape.depth
        self._description = _made("cublasLtMatmulDescCreate", _COMPUTE_FLOAT32, _FLOAT32)
        # Row-major matrices are their own transposes to the library, which counts columns first.
        self._describe(_TRANSPOSE_A, ctypes.c_int32(_TRANSPOSED))
        if shape.bias or shape.gelu:
            self._describe(_EPILOGUE, ctypes.c_int32(_WITH_BIAS * shape.bias + _WITH_GELU * shape.gelu))
        self._weight, self._x, self._out = (
            _made(
                "cublasLtMatrixLayoutCreate",
                _BFLOAT16,
                ctypes.c_uint64(height),
                ctypes.c_uint64(columns),
                ctypes.c_int64(height),
            )
            for height, columns in ((depth, width), (depth, rows), (width, rows))
        )

    def offers(self, most: int) -> list[Offer]:
        """What the library's heuristic names, best guess first; all sum in float32."""
        preference = _made("cublasLtMatmulPreferenceCreate")
        for attribute, value in (
            (_MOST_WORKSPACE, ctypes.c_size_t(WORKSPACE_BYTES)),
            (_REDUCTIONS, ctypes.c_uint32(_REDUCTIONS_IN_FLOAT32)),
        ):
            _call(
                "cublasLtMatmulPreferenceSetAttribute",
                preference,
                attribute,
                ctypes.byref(value),
                ctypes.c_size_t(ctypes.sizeof(value)),
            )
        results, count = (_Result * most)(), ctypes.c_int()
        _call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(_handle(), self._description, self._weight, self._x, self._out, self._out),
            *(preference, most, results, ctypes.byref(count)),
        )
        _call("cublasLtMatmulPreferenceDestroy", preference)
        return [
            Offer(tuple(result.algorithm.words), result.workspace_bytes)
            for result in results[: count.value]
            if result.status == 0
        ]

    def takes(self, offer: Offer) -> bool:
        """Whether an algorithm that was offered for a like shape computes this one too."""
        result = _Result()
        status = _library().cublasLtMatmulAlgoCheck(
            *(_handle(), self._description, self._weight, self._x, self._out, self._out),
            *(ctypes.byref(_algorithm(offer)), ctypes.byref(result)),
        )
        return bool(status == 0 and result.workspace_bytes <= WORKSPACE_BYTES)

    def run(
        self, offer: Offer, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, workspace: Tensor
    ) -> None:
        """Enqueue on the current stream.

        Args:
            x, weight, bias, out: contiguous, of the shape.
            workspace: `[WORKSPACE_BYTES]` uint8, nobody else's until this has run.

        Raises:
            EngineError: where the library refuses.
        """
        if bias is not None:
            self._describe(_BIAS, ctypes.c_void_p(bias.data_ptr()))
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        target = ctypes.c_void_p(out.data_ptr())
        _call(
            "cublasLtMatmul",
            *(_handle(), self._description, ctypes.byref(one)),
            *(ctypes.c_void_p(weight.data_ptr()), self._weight, ctypes.c_void_p(x.data_ptr()), self._x),
            *(ctypes.byref(zero), target, self._out, target, self._out),
            *(ctypes.byref(_algorithm(offer)), ctypes.c_void_p(workspace.data_ptr())),
            *(ctypes.c_size_t(workspace.numel()), ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)),
        )

    def __del__(self) -> None:
        """Give the descriptions back."""
        _library().cublasLtMatmulDescDestroy(self._description)
        for layout in (self._weight, self._x, self._out):
            _library().cublasLtMatrixLayoutDestroy(layout)

    def _describe(self, attribute: int, value: ctypes._SimpleCData) -> None:  # type: ignore[type-arg]
        _call(
            "cublasLtMatmulDescSetAttribute",
            self._description,
            attribute,
            ctypes.byref(value),
            ctypes.c_size_t(ctypes.sizeof(value)),
        )


@functools.cache
def _library() -> ctypes.CDLL:
    name = f"libcublasLt.so.{str(torch.version.cuda).split('.')[0]}"
    try:
        # torch has loaded it: the name alone finds that one, wherever it lies.
        return ctypes.CDLL(name, mode=ctypes.DEFAULT_MODE | 0x4)  # RTLD_NOLOAD
    except OSError as error:
        raise EngineError(f"{name}, cuBLASLt of this torch, is not loaded: {error}") from error


@functools.cache
def _handle_of(device: int) -> ctypes.c_void_p:
    with torch.cuda.device(device):
        return _made("cublasLtCreate")


def _handle() -> ctypes.c_void_p:
    return _handle_of(torch.cuda.current_device())


def _algorithm(offer: Offer) -> _Algorithm:
    return _Algorithm((ctypes.c_uint64 * _ALGORITHM_WORDS)(*offer.words))


def _made(function: str, *arguments: object) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(function, ctypes.byref(made), *arguments)
    return made


def _call(function: str, *arguments: object) -> None:
    status = getattr(_library(), function)(*arguments)
    if status != 0:
        raise EngineError(f"{function} failed with status {status}")
