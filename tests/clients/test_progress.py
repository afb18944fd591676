from __future__ import annotations

import io

import pytest

from vlad_client.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_grow() -> None:
    terminal = Terminal()
    assert list(progress(range(4), "working", terminal)) == [0, 1, 2, 3]
    drawn = terminal.getvalue().split("\r")
    assert [text.split("] ")[1].split(",")[0] for text in drawn[1:]] == ["0/4", "1/4", "2/4", "3/4", "4/4"]
    assert terminal.getvalue().count("\n") == 1
    assert drawn[-1].startswith("working [##############################] 4/4")


def test_a_file_gets_the_last_line_only() -> None:
    file = io.StringIO()
    list(progress(range(4), "working", file))
    assert file.getvalue().count("4/4") == 1
    assert "\r" not in file.getvalue()
    assert "0/4" not in file.getvalue()


def test_a_loop_that_fails_leaves_how_far_it_came() -> None:
    file = io.StringIO()
    items = progress(range(4), "working", file)
    with pytest.raises(RuntimeError):  # noqa: PT012
        for item in items:
            if item == 2:
                raise RuntimeError
    items.close()  # type: ignore[attr-defined]
    assert "2/4" in file.getvalue()
