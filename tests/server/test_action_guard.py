"""Limits on what a robot may be told to do: off unless configured, and exact where they are."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays
from prometheus_client import CollectorRegistry

from tests.support.daemon import ROOT
from vlad_configs.action_limits import ActionLimits, load_action_limits
from vlad_configs.errors import ConfigError, EngineError
from vlad_server.action_guard import ActionGuard
from vlad_server.metrics import ServerMetrics
from vlad_server.outcomes import Reply

NONE = (None,) * 7


def limits(**changes: Any) -> ActionLimits:
    values: dict[str, Any] = {
        "environment": "LIBERO",
        "reaction": "warn",
        "low": (-1.0,) * 7,
        "high": (1.0,) * 7,
        "max_step": NONE,
    }
    return ActionLimits(**{**values, **changes})


def guard(configured: ActionLimits | None) -> tuple[ActionGuard, ServerMetrics]:
    metrics = ServerMetrics(CollectorRegistry())
    return ActionGuard(configured, metrics), metrics


def reply(actions: Any) -> Reply:
    return Reply(actions, {}, 0.0, 0.0)


def count(metrics: ServerMetrics, limit: str) -> float | None:
    return metrics.registry.get_sample_value("vlad_action_limit_violations_total", {"limit": limit})


def outside() -> Any:
    actions = np.zeros((4, 7))
    actions[1, 2], actions[2, 3] = 3.0, -2.0
    return actions


def test_without_limits_anything_finite_is_sent_and_nothing_else_ever() -> None:
    checker, metrics = guard(None)
    chunk = reply(1e9 * outside())
    assert checker.checked(chunk) == (chunk, ())
    assert isinstance(checker.checked(reply(np.full((4, 7), np.nan)))[0], EngineError)
    assert count(metrics, "high") == 0


def test_what_is_inside_passes_untouched() -> None:
    chunk = reply(np.linspace(-1, 1, 28).reshape(4, 7))
    assert guard(limits(reaction="refuse"))[0].checked(chunk) == (chunk, ())


def test_a_warning_names_the_first_and_counts_them_all(caplog: pytest.LogCaptureFixture) -> None:
    checker, metrics = guard(limits(max_step=(0.5,) * 7))
    chunk = reply(outside())
    sent, (warning,) = checker.checked(chunk)
    assert sent is chunk
    assert warning == "the chunk breaks an action limit: action 3 of step 2 is -2, below -1"
    assert [count(metrics, limit) for limit in ("low", "high", "step")] == [1, 1, 4]
    checker.checked(chunk)
    assert len([record for record in caplog.records if "action limit" in record.message]) == 1


def test_a_refused_chunk_becomes_an_error_that_says_why() -> None:
    outcome, _ = guard(limits(reaction="refuse"))[0].checked(reply(outside()))
    assert isinstance(outcome, EngineError)
    assert str(outcome).endswith("below -1; it is not sent")


def test_a_rate_is_told_with_both_steps() -> None:
    actions = np.zeros((4, 7))
    actions[2:, 6] = 0.9
    _, (warning,) = guard(limits(max_step=(None,) * 6 + (0.5,)))[0].checked(reply(actions))
    assert warning.endswith("action 6 changes by 0.9 from step 1 to step 2, more than 0.5")


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    arrays.arrays(np.float64, (6, 7), elements=strategies.floats(-1e6, 1e6)),
    strategies.lists(strategies.none() | strategies.floats(1e-3, 1e3), min_size=7, max_size=7),
    strategies.lists(strategies.none() | strategies.floats(-1e3, 0), min_size=7, max_size=7),
)
def test_a_clipped_chunk_keeps_to_every_limit(actions: Any, steps: Any, lows: Any) -> None:
    configured = limits(reaction="clip", low=tuple(lows), high=(5.0,) * 7, max_step=tuple(steps))
    before = actions.copy()
    sent, _ = guard(configured)[0].checked(reply(actions))
    assert isinstance(sent, Reply)
    assert configured.violations(sent.actions) is None
    assert np.array_equal(actions, before)
    untouched = configured.violations(actions) is None
    assert untouched == (sent.actions is actions)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ([], "expected a map"),
        ({"environment": "LIBERO"}, "expected a map with environment, reaction"),
        ({"environment": "LIBERO", "reaction": "warn", "lows": []}, "expected a map"),
        ({"environment": "DROID", "reaction": "warn"}, "are for DROID, and --env is LIBERO"),
        ({"environment": "LIBERO", "reaction": "warn"}, "limits nothing"),
        (
            {"environment": "LIBERO", "reaction": "stop", "low": [0] * 7},
            "reaction must be warn, clip or refuse",
        ),
        (
            {"environment": "LIBERO", "reaction": "warn", "low": [0] * 6},
            "'low' needs 7 entries for LIBERO, not 6",
        ),
        ({"environment": "LIBERO", "reaction": "warn", "low": ["0"] * 7}, "list of finite numbers and nulls"),
        (
            {"environment": "LIBERO", "reaction": "warn", "low": [True] * 7},
            "list of finite numbers and nulls",
        ),
        ({"environment": "LIBERO", "reaction": "warn", "max_step": [0] * 7}, "must be positive"),
        ({"environment": "LIBERO", "reaction": "warn", "low": [2] * 7, "high": [1] * 7}, "above its 'high'"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(tmp_path: pathlib.Path, content: Any, words: str) -> None:
    file = tmp_path / "limits.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=words):
        load_action_limits(file, "LIBERO")


def test_a_file_that_is_not_there_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the action limits .*nowhere.json: No such file"):
        load_action_limits(tmp_path / "nowhere.json", "LIBERO")


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples" / "action_limits").glob("*.json")), ids=lambda f: f.stem
)
def test_the_examples_are_good(file: pathlib.Path) -> None:
    environment = file.stem.upper()
    assert load_action_limits(file, environment).environment == environment
