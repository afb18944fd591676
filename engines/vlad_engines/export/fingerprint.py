"""Digests: of files in parallel, of weights whatever file they come from."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CHUNK_BYTES = 64 << 20
_THREADS = 8


def file_digest(path: pathlib.Path) -> str:
    """SHA-256 over the SHA-256 of every 64 MiB of a file: as strong as one over the whole, and parallel.

    Raises:
        OSError: for a file that cannot be read.
    """
    size = path.stat().st_size

    def digest(offset: int) -> bytes:
        with path.open("rb") as file:
            file.seek(offset)
            return hashlib.sha256(file.read(_CHUNK_BYTES)).digest()

    return _combine(digest, range(0, size, _CHUNK_BYTES))


def buffer_digest(buffer: memoryview) -> str:
    """`file_digest` of a file that holds `buffer`."""

    def digest(offset: int) -> bytes:
        return hashlib.sha256(buffer[offset : offset + _CHUNK_BYTES]).digest()

    return _combine(digest, range(0, buffer.nbytes, _CHUNK_BYTES))


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values of all tensors; the same wherever they lie."""
    import torch

    def digest(name: str) -> bytes:
        tensor = weights[name].detach().cpu().contiguous()
        hashed = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        hashed.update(tensor.view(-1).view(torch.uint8).numpy().data)
        return hashed.digest()

    with ThreadPoolExecutor(_THREADS) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, sorted(weights)))).hexdigest()


def _combine(digest: Callable[[int], bytes], offsets: range) -> str:
    with ThreadPoolExecutor(_THREADS) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, offsets))).hexdigest()
