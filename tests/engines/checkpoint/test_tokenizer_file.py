from __future__ import annotations

import pathlib

import pytest

from vlad_configs.errors import CheckpointError
from vlad_engines.checkpoint.tokenizer_file import find_tokenizer

PLACES = (
    "checkpoint/tokenizer.model",
    "checkpoint/paligemma_tokenizer.model",
    "checkpoint/tokenizer/tokenizer.model",
    "checkpoint/tokenizer/paligemma_tokenizer.model",
    "home/big_vision/paligemma_tokenizer.model",
)


def touch(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def find(root: pathlib.Path, override: str | None = None) -> pathlib.Path:
    return find_tokenizer(root / "checkpoint", override, {"OPENPI_DATA_HOME": str(root / "home")})


@pytest.mark.parametrize("place", [*PLACES, "checkpoint/tokenizer/spiece.model"])
def test_each_place_is_found(tmp_path: pathlib.Path, place: str) -> None:
    expected = touch(tmp_path / place)
    assert find(tmp_path) == expected


def test_the_checkpoints_own_goes_before_the_cache(tmp_path: pathlib.Path) -> None:
    for place in PLACES:
        touch(tmp_path / place)
    assert find(tmp_path) == tmp_path / PLACES[0]


def test_every_place_looked_in_is_listed(tmp_path: pathlib.Path) -> None:
    touch(tmp_path / "checkpoint" / "tokenizer" / "tokenizer.json")
    with pytest.raises(CheckpointError) as caught:
        find(tmp_path)
    for place in PLACES:
        assert f"\n  {tmp_path / place}" in str(caught.value)
    assert "--tokenizer" in str(caught.value)
    assert "tokenizer.json beside the checkpoint is a Hugging Face tokenizer" in str(caught.value)


def test_a_named_file_is_used_or_refused_and_nothing_else_tried(tmp_path: pathlib.Path) -> None:
    touch(tmp_path / PLACES[0])
    named = touch(tmp_path / "mine.model")
    assert find(tmp_path, str(named)) == named
    with pytest.raises(CheckpointError, match=r"looked for .*gone\.model \(--tokenizer\)"):
        find(tmp_path, str(tmp_path / "gone.model"))


def test_the_cache_of_openpi_is_the_default(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = touch(tmp_path / ".cache" / "openpi" / "big_vision" / "paligemma_tokenizer.model")
    assert find_tokenizer(tmp_path / "checkpoint", None, {}) == expected
