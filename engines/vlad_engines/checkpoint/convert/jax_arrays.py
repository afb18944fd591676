"""Reads the arrays of an orbax checkpoint with tensorstore, without jax.

Orbax keeps a tree as one zarr array per leaf, all in one OCDBT store or each in a directory of its own; a
leaf's name is its path in the tree joined by dots. Training runs end every path in `value`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import CheckpointError

Array = npt.NDArray[Any]

_METADATA = {".zarray": "zarr", "zarr.json": "zarr3"}


class JaxArrays(Mapping[str, Array]):
    """The leaves below `params`, by path joined with slashes; each is read when it is asked for.

    Args:
        directory: `params/` of a checkpoint, or the checkpoint that holds it.

    Raises:
        CheckpointError: without tensorstore, and for a directory that is no orbax checkpoint.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._tensorstore: Any = _tensorstore()
        inner = directory / "params"
        self._directory = inner if inner.is_dir() else directory
        if not self._directory.is_dir():
            raise CheckpointError(f"JAX checkpoint {directory} does not exist")
        self._base = self._store()
        self._leaves = dict(self._find())
        if not self._leaves:
            content = ", ".join(sorted(entry.name for entry in self._directory.iterdir())[:12])
            raise CheckpointError(
                f"{self._directory} holds no arrays of an orbax checkpoint; found: {content}"
            )

    def __getitem__(self, name: str) -> Array:
        """The array as float32."""
        leaf, driver = self._leaves[name]
        spec = {"driver": driver, "kvstore": self._kvstore(leaf)}
        try:
            array = self._tensorstore.open(spec, open=True, read=True).result().read().result()
        except ValueError as error:
            raise CheckpointError(f"{self._directory}: '{leaf}' cannot be read: {error}") from error
        return np.asarray(array).astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an array, from its metadata alone."""
        leaf, driver = self._leaves[name]
        file = next(file for file, kind in _METADATA.items() if kind == driver)
        content = json.loads(self._base.read(f"{leaf}/{file}").result().value)
        return tuple(content["shape"])

    def _store(self) -> Any:
        path = f"{self._directory.resolve()}/"
        spec: dict[str, Any] = {"driver": "file", "path": path}
        if (self._directory / "manifest.ocdbt").is_file():
            spec = {"driver": "ocdbt", "base": f"file://{path}"}
        try:
            return self._tensorstore.KvStore.open(spec).result()
        except ValueError as error:
            raise CheckpointError(f"{self._directory} is no readable orbax checkpoint: {error}") from error

    def _kvstore(self, leaf: str) -> dict[str, Any]:
        spec = self._base.spec().to_json()
        return {**spec, "path": f"{spec.get('path', '')}{leaf}/"}

    def _find(self) -> Iterator[tuple[str, tuple[str, str]]]:
        for key in self._base.list().result():
            leaf, _, file = key.decode().rpartition("/")
            if file in _METADATA and leaf:
                parts = leaf.replace("/", ".").split(".")
                yield "/".join(_plain(parts)), (leaf, _METADATA[file])


def _plain(parts: list[str]) -> list[str]:
    """Without the item that orbax puts around a tree, and without the wrapper of training states."""
    if parts[0] == "params":
        parts = parts[1:]
    return parts[:-1] if parts[-1] == "value" else parts


def _tensorstore() -> Any:
    try:
        import tensorstore
    except ImportError as error:
        raise CheckpointError(
            f"JAX checkpoints are read with tensorstore ({error}); pip install 'vlad[convert]'"
        ) from error
    return tensorstore
