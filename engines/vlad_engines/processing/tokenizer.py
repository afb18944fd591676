"""Prompts to token ids: cleaning, the three templates, the state written as bins, padding."""

from __future__ import annotations

import logging
import pathlib
from typing import Protocol

import numpy as np
import numpy.typing as npt
import sentencepiece

from vlad_configs.contract import PromptTemplate
from vlad_configs.errors import CheckpointError

logger = logging.getLogger("vlad.processing")

_BIN_EDGES = np.linspace(-1, 1, 257)[:-1]


class Tokenizer(Protocol):
    """Text to token ids."""

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Token ids of `text`, behind the begin-of-sequence id where asked for."""
        ...


class SentencePieceTokenizer:
    """A SentencePiece model file, such as `paligemma_tokenizer.model`.

    Raises:
        CheckpointError: where the file is no SentencePiece model, or holds more pieces than the
            model has embeddings.
    """

    def __init__(self, path: pathlib.Path, vocab_size: int) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"tokenizer {path} is no readable SentencePiece model: {error}") from error
        if self._processor.vocab_size() > vocab_size:
            raise CheckpointError(
                f"tokenizer {path} has {self._processor.vocab_size()} pieces, the model embeds {vocab_size}; "
                "name the checkpoint's own tokenizer with --tokenizer"
            )
        if self._processor.bos_id() < 0:
            raise CheckpointError(f"tokenizer {path} has no begin-of-sequence piece")

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """See `Tokenizer.encode`."""
        ids: list[int] = self._processor.encode(text, add_bos=add_bos)
        return ids


def state_bins(state: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Bin each normalised number into 256 bins over [-1, 1].

    Numbers below -1 give -1 and numbers above 1 give 255, exactly as openpi and LeRobot write them.
    """
    return np.digitize(state, _BIN_EDGES) - 1


def encode_prompt(
    tokenizer: Tokenizer, template: PromptTemplate, prompt: str, state: npt.NDArray[np.float64]
) -> list[int]:
    """Token ids of one prompt, neither padded nor cut.

    Args:
        state: the normalised state as the template wants it; only `task_state_action` reads it.
    """
    if template == "text_newline_joint":
        return tokenizer.encode(prompt if prompt.endswith("\n") else prompt + "\n", add_bos=True)
    text = prompt.strip().replace("_", " ").replace("\n", " ")
    if template == "text":
        return tokenizer.encode(text, add_bos=True) + tokenizer.encode("\n", add_bos=False)
    bins = " ".join(str(number) for number in state_bins(state))
    return tokenizer.encode(f"Task: {text}, State: {bins};\nAction: ", add_bos=True)


def pad_tokens(ids: list[int], length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Pad with 0 to `length`, or cut the end with a warning.

    Returns:
        `[length]` int64 ids and `[length]` bool mask, True for real tokens.
    """
    if len(ids) > length:
        logger.warning(
            "prompt of %d tokens exceeds the model's %d; its end is cut. Shorten the instruction",
            len(ids),
            length,
        )
        ids = ids[:length]
    tokens = np.zeros(length, np.int64)
    tokens[: len(ids)] = ids
    return tokens, np.arange(length) < len(ids)
