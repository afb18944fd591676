"""The table says what ran, what did not, and pairs what can be paired; a stopped one goes on."""

from __future__ import annotations

import dataclasses
import json

import pytest

from tests.libero.test_results import PROMPTS, PROTOCOL, RUN, _results
from vlad_libero.errors import LiberoError, ResultsError
from vlad_libero.evaluation.backend_table import finished_row, markdown, missing_row
from vlad_libero.evaluation.playing import Playing
from vlad_libero.evaluation.results import summarise
from vlad_libero.evaluation.rows import REFERENCE, ROWS, chosen_rows

HORIZON = 10


def test_every_row_fits_into_the_policys_chunks() -> None:
    for row in ROWS.values():
        options = dict(zip(row.play[::2], row.play[1::2], strict=True))
        playing = Playing(
            int(options.get("--replan-steps", 5)),
            int(options.get("--delay-steps", 0)),
            options.get("--play", "lockstep"),  # type: ignore[arg-type]
            int(options["--rtc-prefix-end"]) if "--rtc-prefix-end" in options else None,
        )
        assert playing.replan_steps + playing.delay_steps <= HORIZON, row.name


def test_the_reference_is_always_run_and_first() -> None:
    assert [row.name for row in chosen_rows(["steps-1"])] == [REFERENCE, "steps-1"]
    assert [row.name for row in chosen_rows([])] == list(ROWS)
    with pytest.raises(LiberoError, match="no row 'triton-fp9'; known: reference"):
        chosen_rows(["triton-fp9"])


def test_a_row_is_paired_with_the_reference_even_where_it_replans_more_often() -> None:
    reference = summarise(PROTOCOL, _results(True, True, True, False), PROMPTS, RUN)
    often = dataclasses.replace(PROTOCOL, replan_steps=2)
    summary = summarise(often, _results(True, False, False, False), PROMPTS, RUN)
    row = finished_row(ROWS["rtc-delay-8"], summary, ["serve_policy"], reference)
    assert row["against_reference"]["only_first"] == 2
    assert row["against_reference"]["episodes"] == 4
    assert "wrong_object_rate" in row
    assert "/tmp" not in json.dumps(row)
    other = dataclasses.replace(PROTOCOL, seed=8)
    with pytest.raises(ResultsError, match="seed"):
        finished_row(ROWS["steps-1"], summarise(other, _results(*[True] * 4), PROMPTS, RUN), [], reference)


def test_a_row_that_could_not_run_has_a_reason_and_no_numbers() -> None:
    row = missing_row(ROWS["tensorrt"], "no tensorrt | here")
    assert "success_rate" not in row
    summary = summarise(PROTOCOL, _results(True, True, True, False), PROMPTS, RUN)
    text = markdown([finished_row(ROWS[REFERENCE], summary, [], None), row])
    assert "| lockstep |  | 3/4 (75.0%) |" in text
    assert "not run: no tensorrt / here" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_a_row_says_on_what_it_was_computed() -> None:
    run = {**RUN, "served": {"device": "cuda"}}
    summary = summarise(PROTOCOL, _results(True, True, True, False), PROMPTS, run)
    row = finished_row(ROWS[REFERENCE], summary, [], None)
    assert row["device"] == "cuda"
    assert "| on |" in markdown([row])
    assert "| lockstep | cuda | 3/4 (75.0%) |" in markdown([row])
