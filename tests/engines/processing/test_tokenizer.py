from __future__ import annotations

import logging
import pathlib

import numpy as np
import pytest

from tests.support.checkpoints import TOKENIZER
from vlad_configs.errors import CheckpointError
from vlad_engines.processing.tokenizer import SentencePieceTokenizer, encode_prompt, pad_tokens


class Echo:
    """Keeps the texts it is given."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, bool]] = []

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        self.texts.append((text, add_bos))
        return [1]


def texts(template: object, prompt: str, state: list[float] | None = None) -> list[tuple[str, bool]]:
    echo = Echo()
    encode_prompt(echo, template, prompt, np.array(state or []))  # type: ignore[arg-type]
    return echo.texts


def test_openpi_without_state_encodes_the_newline_apart() -> None:
    assert texts("text", " Pick_up\nthe  fork ") == [("Pick up the  fork", True), ("\n", False)]


def test_lerobot_pi0_leaves_the_text_alone_and_ends_it_with_one_newline() -> None:
    assert texts("text_newline_joint", " Pick_up") == [(" Pick_up\n", True)]
    assert texts("text_newline_joint", "Pick up\n") == [("Pick up\n", True)]


def test_the_state_is_written_as_bins() -> None:
    assert texts("task_state_action", "wipe_it", [-1.5, 0.0, 2.0]) == [
        ("Task: wipe it, State: -1 128 255;\nAction: ", True)
    ]


def test_a_cut_prompt_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokens, mask = pad_tokens(list(range(10)), 4)
    assert tokens.tolist() == [0, 1, 2, 3]
    assert mask.all()
    assert "prompt of 10 tokens exceeds the model's 4" in caplog.text


def test_a_tokenizer_larger_than_the_embedding_is_refused() -> None:
    assert SentencePieceTokenizer(TOKENIZER, 512).encode("a", add_bos=True)[0] == 2
    with pytest.raises(CheckpointError, match="has 512 pieces, the model embeds 511"):
        SentencePieceTokenizer(TOKENIZER, 511)


@pytest.mark.parametrize("content", [b"", b"no model at all"])
def test_another_file_is_no_tokenizer(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer .*tokenizer.model"):
        SentencePieceTokenizer(path, 512)
