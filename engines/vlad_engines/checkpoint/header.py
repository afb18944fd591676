"""Reads the header of a safetensors file: names, shapes and dtypes without a single weight.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the data. Having the
sizes at hand, this notices truncated files before anybody waits for gigabytes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping

from vlad_configs.errors import CheckpointError

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""

_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}

FLOAT_DTYPES = frozenset({"F16", "BF16", "F32", "F64"})


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """One tensor of a file. `dtype` is safetensors' own name, such as `BF16`."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class SafetensorsHeader:
    """What a safetensors file says about itself."""

    path: pathlib.Path
    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]
    file_bytes: int

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, or None where the file has no such name."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.shape


def read_header(path: pathlib.Path) -> SafetensorsHeader:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: for a file that is truncated, still being written, or of another format.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if file_bytes < 8 or not 2 <= length <= min(_MAX_HEADER_BYTES, file_bytes - 8):
                raise CheckpointError(_incomplete(path, f"{file_bytes} bytes, too few for its own header"))
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    try:
        entries = json.loads(text)
        metadata = entries.pop("__metadata__", {})
        tensors = {
            name: TensorHeader(tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()
        }
        spans = {name: tuple(entry["data_offsets"]) for name, entry in entries.items()}
        expected_bytes = 8 + length + max((end for _, end in spans.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: unreadable header ({error})") from error
    if file_bytes != expected_bytes:
        raise CheckpointError(_incomplete(path, f"{file_bytes} bytes, its header promises {expected_bytes}"))
    for name, tensor in tensors.items():
        start, end = spans[name]
        size = _DTYPE_BYTES.get(tensor.dtype)
        if size is not None and end - start != tensor.elements * size:
            raise CheckpointError(
                f"{path}: tensor '{name}' claims shape {list(tensor.shape)} {tensor.dtype} "
                f"but holds {end - start} bytes"
            )
    return SafetensorsHeader(path, tensors, metadata, file_bytes)


def _incomplete(path: pathlib.Path, what: str) -> str:
    return f"{path} is incomplete ({what}); copy or convert the checkpoint again"
