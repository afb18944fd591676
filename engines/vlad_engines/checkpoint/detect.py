"""Tells by content what a directory holds: an openpi PyTorch checkpoint, a LeRobot one, or neither."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vlad_configs.contract import CheckpointLayout
from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.header import SafetensorsHeader, read_header

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
LEROBOT_PREFIX = "model."

_PARTIAL_SUFFIXES = (".partial", ".incomplete", ".part", ".tmp", ".crdownload", ".download")


@dataclasses.dataclass(frozen=True)
class CheckpointFiles:
    """A directory that holds a checkpoint: what it says about itself, no weights.

    Attributes:
        config: parsed `config.json`; empty where openpi's converter was not the writer.
        header: of `model.safetensors`.
    """

    path: pathlib.Path
    layout: CheckpointLayout
    config: Mapping[str, Any]
    header: SafetensorsHeader

    @property
    def random_weights(self) -> bool:
        """True where the weights were never trained, as the embedded demo says of itself."""
        return self.config.get("weights") == "random"


def open_checkpoint(directory: str | pathlib.Path) -> CheckpointFiles:
    """Look at a directory and at the header of its weights.

    Raises:
        CheckpointError: says what lies there instead and what to do about it.
    """
    path = pathlib.Path(directory).expanduser()
    _refuse_other_content(path)
    config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
    header = read_header(path / WEIGHTS_FILE)
    if not header.tensors:
        raise CheckpointError(f"{header.path} holds no tensors")
    return CheckpointFiles(path, _layout(path, config, header), config, header)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: where the file is not one.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object, holds {type(data).__name__}")
    return data


def _layout(path: pathlib.Path, config: Mapping[str, Any], header: SafetensorsHeader) -> CheckpointLayout:
    if "type" in config:
        if config["type"] in ("pi0", "pi05"):
            return "lerobot"
        raise CheckpointError(
            f"{path / CONFIG_FILE} describes a LeRobot policy of type {config['type']!r}; "
            "only 'pi0' and 'pi05' are served"
        )
    if any(name.startswith(LEROBOT_PREFIX) for name in header.tensors):
        raise CheckpointError(
            f"{header.path} has LeRobot's tensor names, but {path / CONFIG_FILE} has no 'type'; "
            "copy the whole pretrained_model directory, config.json and processor files included"
        )
    return "openpi"


def _refuse_other_content(path: pathlib.Path) -> None:
    if path.is_file():
        raise CheckpointError(f"{path} is a file; name the directory that holds it")
    if not path.is_dir():
        raise CheckpointError(f"checkpoint directory {path} does not exist")
    if (path / WEIGHTS_FILE).is_file():
        return
    content = sorted(entry.name for entry in path.iterdir())
    if not content:
        raise CheckpointError(f"checkpoint directory {path} is empty")
    raise CheckpointError(
        f"{path} holds no {WEIGHTS_FILE}: {_what_it_is(path, content)}; found: {', '.join(content[:12])}"
        + (", ..." if len(content) > 12 else "")
    )


def _what_it_is(path: pathlib.Path, content: list[str]) -> str:
    if partial := [name for name in content if name.endswith(_PARTIAL_SUFFIXES)]:
        return f"a download or copy is unfinished ({', '.join(partial)}); let it end or repeat it"
    if f"{WEIGHTS_FILE}.index.json" in content:
        return "the weights are split over several files; merge them into one safetensors file"
    if "params" in content or "_METADATA" in content or "manifest.ocdbt" in content:
        return (
            "this is a JAX checkpoint; convert it to PyTorch first: "
            f"convert_checkpoint {path} OUTPUT --config NAME"
        )
    if "snapshots" in content and (inner := _inner(path, "snapshots/*")):
        return f"this is a Hugging Face cache entry; name the snapshot inside it: {inner}"
    if inner := _inner(path, "*") or _inner(path, "*/pretrained_model"):
        return f"this is a folder of checkpoints; name one of them: {inner}"
    return "an openpi PyTorch or a LeRobot checkpoint directory has one"


def _inner(path: pathlib.Path, pattern: str) -> str:
    found = sorted(entry.parent.relative_to(path) for entry in path.glob(f"{pattern}/{WEIGHTS_FILE}"))
    return ", ".join(str(entry) for entry in found[:8])
