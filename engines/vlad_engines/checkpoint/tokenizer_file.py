"""Finds the SentencePiece model of a checkpoint; never fetches one."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

from vlad_configs.errors import CheckpointError

TOKENIZER_NAMES = ("tokenizer.model", "paligemma_tokenizer.model")
OPENPI_TOKENIZER = pathlib.Path("big_vision") / "paligemma_tokenizer.model"


def find_tokenizer(
    checkpoint: pathlib.Path, override: str | None = None, variables: Mapping[str, str] = os.environ
) -> pathlib.Path:
    """Look beside the checkpoint, then in openpi's cache.

    Args:
        override: the file to use instead.
        variables: environment variables, for `OPENPI_DATA_HOME`.

    Raises:
        CheckpointError: lists every place looked in.
    """
    if override is not None:
        path = pathlib.Path(override).expanduser()
        if path.is_file():
            return path
        raise CheckpointError(f"tokenizer not found: looked for {path} (--tokenizer)")
    home = pathlib.Path(variables.get("OPENPI_DATA_HOME") or "~/.cache/openpi").expanduser()
    beside = [checkpoint / name for name in TOKENIZER_NAMES]
    inside = [checkpoint / "tokenizer" / name for name in TOKENIZER_NAMES]
    # LeRobot names no fixed file in its tokenizer folder; any SentencePiece model there is the one.
    others = sorted((checkpoint / "tokenizer").glob("*.model"))
    places = [*beside, *inside, *(path for path in others if path not in inside), home / OPENPI_TOKENIZER]
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(
        "tokenizer not found; looked in:\n  "
        + "\n  ".join(str(place) for place in places)
        + "\nname a SentencePiece file with --tokenizer; openpi's lies at gs://big_vision/paligemma_tokenizer.model"
        + (
            "\nthe tokenizer.json beside the checkpoint is a Hugging Face tokenizer, which is not read here"
            if (checkpoint / "tokenizer" / "tokenizer.json").is_file()
            else ""
        )
    )
