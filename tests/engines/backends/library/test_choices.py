"""Which algorithm computes a product, and what is remembered of it."""

from __future__ import annotations

import pathlib

import pytest

from vlad_engines.backends.triton.library.choices import Choices, fastest
from vlad_engines.backends.triton.library.cublaslt import Offer, Shape
from vlad_engines.backends.triton.library.remembered import ROWS_APART

SHAPE = Shape(rows=4256, width=32768, depth=2048, bias=False, gelu=False)
OFFER = Offer((3, 0, 2**64 - 1, 0, 0, 0, 0, 7), 1 << 20)


@pytest.mark.parametrize(
    ("own_s", "offered_s", "expected"),
    [(1.0, [1.2, 0.9, 0.95], 1), (1.0, [0.995, 1.0], None), (1.0, [], None), (1.0, [0.98], 0)],
)
def test_an_offer_is_taken_where_it_is_clearly_faster(
    own_s: float, offered_s: list[float], expected: int | None
) -> None:
    assert fastest(own_s, offered_s) == expected


def test_choices_are_remembered(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "products" / "gpu.json"
    choices = Choices(path)
    assert SHAPE not in choices
    choices.keep(SHAPE, OFFER)
    choices.keep(SHAPE._replace(width=2048), None)
    again = Choices(path)
    assert again.get(SHAPE) == OFFER
    assert again.get(SHAPE._replace(width=2048)) is None
    assert again.describe() == choices.describe()
    assert [entry.name for entry in path.parent.iterdir()] == ["gpu.json"]


def test_what_computes_other_bits_is_described_otherwise(tmp_path: pathlib.Path) -> None:
    first, second = Choices(tmp_path / "1.json"), Choices(tmp_path / "2.json")
    first.keep(SHAPE, OFFER)
    second.keep(SHAPE, OFFER._replace(workspace_bytes=0))
    assert first.describe() != second.describe()


def test_like_numbers_of_rows_share_a_choice_and_nothing_else_does(tmp_path: pathlib.Path) -> None:
    choices = Choices(tmp_path / "gpu.json")
    choices.keep(SHAPE, OFFER)
    assert SHAPE._replace(rows=4200) in choices
    for other in (
        SHAPE._replace(rows=4256 + ROWS_APART),
        SHAPE._replace(width=2048),
        SHAPE._replace(depth=1024),
        SHAPE._replace(bias=True),
        SHAPE._replace(bias=True, gelu=True),
    ):
        assert other not in choices


@pytest.mark.parametrize("text", ["", "[]", '{"512x1x1": {"words": "x"}}', '{"512x1x1": 3}'])
def test_an_unreadable_memory_counts_as_none(
    tmp_path: pathlib.Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(text)
    choices = Choices(path)
    assert SHAPE not in choices
    assert "unreadable" in caplog.text
    choices.keep(SHAPE, OFFER)
    assert Choices(path).get(SHAPE) == OFFER


def test_a_place_that_cannot_be_written_costs_no_choice(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    choices = Choices(tmp_path / "file" / "gpu.json")
    choices.keep(SHAPE, OFFER)
    assert choices.get(SHAPE) == OFFER
    assert "cannot be remembered" in caplog.text
