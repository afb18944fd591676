"""Work in several processes: results, errors, and processes that die."""

from __future__ import annotations

import os

import pytest

from vlad_libero.errors import LiberoError
from vlad_libero.processes import in_processes


def _square(number: int) -> int:
    if number < 0:
        raise LiberoError(f"{number} is negative")
    if number == 13:
        os._exit(1)
    return number * number


def test_every_result_comes_back() -> None:
    assert sorted(in_processes(_square, range(5), workers=2)) == [0, 1, 4, 9, 16]
    assert list(in_processes(_square, [], workers=2)) == []


def test_an_error_ends_the_work_and_keeps_its_text() -> None:
    with pytest.raises(LiberoError, match="-1 is negative"):
        list(in_processes(_square, [-1], workers=1))


def test_a_process_that_dies_is_reported() -> None:
    with pytest.raises(LiberoError, match="a simulator process died"):
        list(in_processes(_square, [13], workers=1))
