"""Reads weights, one tensor at a time, under the names of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol, cast

import torch
from safetensors import SafetensorError, safe_open

from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.tensor_names import TensorNames
from vlad_engines.model.openpi_names import TOKEN_EMBEDDING


class _TensorFile(Protocol):
    def get_tensor(self, name: str) -> torch.Tensor: ...


class LazyWeights(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint by model name; each is read from disk when it is asked for.

    Args:
        files: the checkpoint.
        names: its tensor names, already accounted for.

    Raises:
        CheckpointError: for an unreadable file, and where two copies of the token table differ.
    """

    def __init__(self, files: CheckpointFiles, names: TensorNames) -> None:
        self._path = files.header.path
        self._in_file = names.in_file
        try:
            self._file = cast(_TensorFile, safe_open(str(self._path), framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self._path} cannot be read: {error}") from error
        copy = names.token_table_copy
        if copy is not None and not torch.equal(self._file.get_tensor(copy), self[TOKEN_EMBEDDING]):
            raise CheckpointError(
                f"{self._path}: '{copy}' and '{self._in_file[TOKEN_EMBEDDING]}' are one tied tensor, "
                "but their values differ"
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(self._in_file[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._in_file)

    def __len__(self) -> int:
        return len(self._in_file)
