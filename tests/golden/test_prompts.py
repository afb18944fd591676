"""Prompts, state bins and token ids against openpi's tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.support.golden import load_arrays, require_file
from tests.support.golden_lists import listed
from vlad_engines.processing.tokenizer import (
    SentencePieceTokenizer,
    encode_prompt,
    pad_tokens,
    state_bins,
)


class RecordingTokenizer:
    """Passes on to the real tokenizer and keeps what it was asked."""

    def __init__(self) -> None:
        self._tokenizer = SentencePieceTokenizer(require_file("tiny_tokenizer.model"), 1 << 20)
        self.calls: list[tuple[str, bool]] = []

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        self.calls.append((text, add_bos))
        return self._tokenizer.encode(text, add_bos=add_bos)


@pytest.mark.parametrize("case", listed("prompts.json"))
def test_every_prompt_gives_openpis_strings_bins_and_tokens(case: tuple[str, dict[str, Any]]) -> None:
    _, entry = case
    tokenizer = RecordingTokenizer()
    state = np.array([] if entry["state"] is None else entry["state"])
    template = "text" if entry["state"] is None else "task_state_action"
    ids = encode_prompt(tokenizer, template, entry["prompt"], state)
    tokens, mask = pad_tokens(ids, entry["max_len"])
    assert tokenizer.calls == [
        (text, bool(options.get("add_bos"))) for text, options in entry["encoded_strings"]
    ]
    if entry["bins"] is not None:
        assert state_bins(state).tolist() == entry["bins"]
    assert tokens.dtype == np.dtype(entry["tokens_dtype"])
    assert mask.dtype == np.bool_
    assert tokens.tolist() == entry["tokens"]
    assert mask.tolist() == [bool(real) for real in entry["mask"]]


def test_every_bin_edge_falls_where_openpi_puts_it() -> None:
    require_file("state_bins.npz")
    arrays = load_arrays("state_bins.npz")
    np.testing.assert_array_equal(state_bins(arrays["value"]), arrays["bin"])
