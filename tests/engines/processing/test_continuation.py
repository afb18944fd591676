"""Plans for every way in which the leftover of a chunk can fit or not fit a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.contracts import CharacterTokenizer, contract_for, spread_stats
from tests.support.observations import observation_for
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError, ObservationError
from vlad_configs.rtc import GUIDANCE_MODES, ChunkContinuation, GuidanceMode
from vlad_engines.model.flow import euler_schedule
from vlad_engines.processing.continuation import ContinuationPlanner, Plan
from vlad_engines.processing.guidance import prefix_weights
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.processing.normalization import NormStats
from vlad_engines.processing.processor import Processor

H, A = 12, 32
QUANTILE = {"state": "quantile", "actions": "quantile"}
LIBERO_RELATIVE = (True,) * 6 + (False,)


def make(
    environment: str = "LIBERO",
    modes: Sequence[GuidanceMode] = GUIDANCE_MODES,
    trained_max_delay: int | None = None,
    **contract: Any,
) -> tuple[ContinuationPlanner, Processor]:
    robot = ENVIRONMENTS[environment]
    stats = NormStats(spread_stats(robot.state_width, 1), spread_stats(robot.action_width, 2))
    processor = Processor(contract_for(robot, norm_kind=QUANTILE, **contract), stats, CharacterTokenizer())
    planner = ContinuationPlanner(
        processor,
        times=euler_schedule(10).times,
        horizon=H,
        action_dim=A,
        action_width=robot.action_width,
        modes=modes,
        trained_max_delay=trained_max_delay,
    )
    return planner, processor


def leftover(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(-1, 1, size=(count, A)).astype(np.float32)


def plan(delay: int, count: int | None, *, settings: dict[str, Any] | None = None, **planner: Any) -> Plan:
    made, processor = make(**planner)
    actions = None if count is None else leftover(count)
    continuation = ChunkContinuation(delay=delay, model_actions=actions, **(settings or {}))
    return made.plan(continuation, processor.prepare(observation_for("LIBERO")))


def test_the_leftover_is_the_target_and_only_the_robots_columns_are_guided() -> None:
    made = plan(3, 8)
    assert made.guidance is not None
    assert (made.mode, made.delay, made.prefix_end) == ("guided_identity", 3, 8)
    assert (made.beta, made.schedule, made.note) == (10.0, "exp", None)
    weights, target = made.guidance.weights, made.guidance.target
    expected = prefix_weights("exp", 3, 8, H).astype(np.float32)
    np.testing.assert_array_equal(weights[:, :7], np.repeat(expected[:, None], 7, axis=1))
    assert (weights[:, 7:] == 0).all()
    np.testing.assert_array_equal(target[:8, :7], leftover(8)[:, :7])
    assert (target[8:] == 0).all()
    assert (target[:, 7:] == 0).all()
    assert made.guidance.frozen == 0


def test_the_report_is_plain_and_names_everything_that_was_used() -> None:
    made = plan(3, 8, settings={"beta": 4.0, "schedule": "linear", "prefix_end": 6})
    assert json.loads(json.dumps(made.report())) == {
        "mode": "guided_identity",
        "delay": 3,
        "prefix_end": 6,
        "beta": 4.0,
        "schedule": "linear",
        "valid_from": 3,
        "note": None,
    }
    assert made.guidance is not None
    assert made.guidance.gains.max() == np.float32(0.4)


def test_without_a_previous_chunk_sampling_is_plain() -> None:
    made = plan(3, None)
    assert (made.guidance, made.mode, made.note) == (None, "off", "there is no previous chunk")


def test_a_chunk_that_is_used_up_is_not_continued() -> None:
    made = plan(3, 0)
    assert (made.guidance, made.mode, made.note) == (None, "off", "the previous chunk is used up")


def test_off_is_plain_and_needs_no_note() -> None:
    made = plan(3, 8, settings={"mode": "off"})
    assert (made.guidance, made.mode, made.note) == (None, "off", None)


def test_a_leftover_shorter_than_the_delay_is_held_to_its_end_and_no_further() -> None:
    made = plan(6, 4)
    assert made.guidance is not None
    assert made.prefix_end == 4
    assert made.note == "the 4 actions left do not last for delay 6"
    assert made.guidance.weights[:, 0].tolist() == [1.0] * 4 + [0.0] * 8


def test_a_requested_end_is_cut_to_the_leftover() -> None:
    made = plan(2, 5, settings={"prefix_end": 11, "schedule": "ones"})
    assert made.guidance is not None
    assert made.prefix_end == 5
    assert made.guidance.weights[:, 0].tolist() == [1.0] * 5 + [0.0] * 7


def test_a_delay_behind_the_requested_end_holds_up_to_the_end_and_says_so() -> None:
    made = plan(6, 10, settings={"prefix_end": 4})
    assert made.guidance is not None
    assert made.prefix_end == 4
    assert made.note == "delay 6 lies behind the requested prefix end 4"
    assert made.guidance.weights[:, 0].tolist() == [1.0] * 4 + [0.0] * 8


def test_a_long_delay_still_holds_every_action_that_the_robot_executes_meanwhile() -> None:
    made = plan(9, H)
    assert made.guidance is not None
    assert made.prefix_end == 9
    assert made.guidance.weights[:, 0].tolist() == [1.0] * 9 + [0.0] * 3


def test_without_an_end_the_delay_is_left_free_at_the_far_end() -> None:
    assert plan(4, H).prefix_end == H - 4
    assert plan(0, H).prefix_end == H - 1


def test_a_prefix_end_of_zero_is_plain() -> None:
    made = plan(2, 8, settings={"prefix_end": 0})
    assert (made.guidance, made.mode) == (None, "off")
    assert made.note is not None
    assert made.note.endswith("no action is held")


def test_a_hard_end_without_delay_is_plain() -> None:
    made = plan(0, 8, settings={"schedule": "zeros"})
    assert (made.guidance, made.mode) == (None, "off")
    assert made.note == "with delay 0 and prefix end 8 no action is held"


def test_a_delay_beyond_the_horizon_is_reported_as_it_came() -> None:
    made = plan(40, H)
    assert made.report()["valid_from"] == 40
    assert made.guidance is not None
    assert (made.guidance.weights[:, 0] == 1).all()


@pytest.mark.parametrize("mode", ["auto", "trained"])
def test_a_trained_checkpoint_gets_its_frozen_actions(mode: str) -> None:
    made = plan(3, 8, settings={"mode": mode}, trained_max_delay=4)
    assert made.guidance is not None
    assert (made.mode, made.guidance.mode, made.guidance.frozen) == ("trained", "trained", 3)
    assert (made.prefix_end, made.beta, made.schedule, made.note) == (3, None, None, None)
    assert (made.guidance.weights == 0).all()
    np.testing.assert_array_equal(made.guidance.target[:3, :7], leftover(8)[:3, :7])


@pytest.mark.parametrize("mode", ["auto", "trained"])
@pytest.mark.parametrize(
    ("delay", "count", "reason"),
    [
        (5, 8, "delay 5 is longer than the 4 that the checkpoint was trained for"),
        (3, 2, "the 2 actions left do not last for delay 3"),
    ],
)
def test_what_training_did_not_cover_is_guided_and_says_so(
    mode: str, delay: int, count: int, reason: str
) -> None:
    made = plan(delay, count, settings={"mode": mode}, trained_max_delay=4)
    assert made.mode == "guided_identity"
    assert made.note == f"{reason}: guided_identity instead of trained"
    assert made.guidance is not None
    assert made.guidance.weights.any()


def test_trained_without_delay_is_plain() -> None:
    made = plan(0, 8, settings={"mode": "trained"}, trained_max_delay=4)
    assert (made.guidance, made.mode) == (None, "off")


@pytest.mark.parametrize(
    ("mode", "planner", "known"),
    [
        ("trained", {}, "auto, guided_identity, guided_vjp, off"),
        ("guided_vjp", {"modes": ("guided_identity",)}, "auto, guided_identity, off"),
        ("trained", {"modes": ("guided_identity",), "trained_max_delay": 4}, "auto, guided_identity, off"),
        ("guided_identity", {"modes": ()}, "auto, off"),
    ],
)
def test_a_mode_that_is_not_to_be_had_is_refused_with_the_list(
    mode: str, planner: dict[str, Any], known: str
) -> None:
    with pytest.raises(ObservationError, match=rf"'vlad/rtc/mode': expected one of {known} \(of this policy"):
        plan(3, 8, settings={"mode": mode}, **planner)


def test_auto_on_a_backend_without_modes_is_plain_and_says_so() -> None:
    made = plan(3, 8, modes=())
    assert (made.guidance, made.mode, made.note) == (None, "off", "this backend cannot continue chunks")


def test_a_backend_must_offer_the_mode_that_all_others_fall_back_to() -> None:
    with pytest.raises(ConfigError, match="must offer guided_identity"):
        make(modes=("trained",))


def test_capabilities_are_what_can_be_requested() -> None:
    assert make(modes=())[0].capabilities() is None
    assert make()[0].capabilities() == {
        "modes": ["guided_identity", "guided_vjp"],
        "default_mode": "guided_identity",
        "schedules": ["exp", "linear", "ones", "zeros"],
        "default_schedule": "exp",
        "beta": 10.0,
        "trained_max_delay": None,
    }
    trained = make(trained_max_delay=4)[0].capabilities()
    assert trained is not None
    assert trained["modes"] == list(GUIDANCE_MODES)
    assert trained["trained_max_delay"] == 4


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model_actions", (3, 7)),
        ("model_actions", (H + 1, A)),
        ("action_prefix", (3, A)),
        ("action_prefix", (H + 1, 7)),
    ],
)
def test_a_leftover_of_another_shape_is_refused(name: str, shape: tuple[int, int]) -> None:
    made, processor = make()
    continuation = ChunkContinuation(delay=1, **{name: np.zeros(shape)})  # type: ignore[arg-type]
    with pytest.raises(ObservationError, match=rf"'vlad/rtc/{name}'.*at most {H}"):
        made.plan(continuation, processor.prepare(observation_for("LIBERO")))


# ---- robot units and anchors ----

ROBOTS = [
    ("LIBERO", None),
    ("LIBERO", LIBERO_RELATIVE),
    ("DROID", None),
    ("DROID", (True,) * 7 + (False,)),
    ("ALOHA", None),
    ("ALOHA", (True,) * 6 + (False,) + (True,) * 6 + (False,)),
]


@pytest.mark.parametrize(("environment", "relative"), ROBOTS)
def test_actions_of_the_robot_go_back_to_what_the_model_said(
    environment: str, relative: tuple[bool, ...] | None
) -> None:
    made, processor = make(environment, delta_mask=relative)
    inputs = processor.prepare(observation_for(environment))
    chunk, width = leftover(H), ENVIRONMENTS[environment].action_width
    actions = processor.finish(chunk, inputs)
    planned = made.plan(ChunkContinuation(delay=2, action_prefix=actions[4:]), inputs)
    assert planned.guidance is not None
    np.testing.assert_allclose(planned.guidance.target[: H - 4, :width], chunk[4:, :width], atol=1e-5)
    assert (planned.guidance.target[:, width:] == 0).all()
    back = processor.finish(planned.guidance.target, inputs)
    np.testing.assert_allclose(back[: H - 4], actions[4:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("environment", "relative"), ROBOTS)
def test_a_leftover_means_the_same_motion_wherever_the_robot_is_by_now(
    environment: str, relative: tuple[bool, ...] | None
) -> None:
    """Its own chunk and its actions in robot units give one target, also after the state has moved."""
    made, processor = make(environment, delta_mask=relative)
    before, now = (observation_for(environment, seed) for seed in (1, 2))
    for vector in ENVIRONMENTS[environment].state:
        now[vector.key] = before[vector.key] + 0.25
    chunk = leftover(H)
    actions = processor.finish(chunk, processor.prepare(before))
    inputs = processor.prepare(now)
    from_model = made.plan(
        ChunkContinuation(delay=2, model_actions=chunk[3:], anchor_state=processor.robot_state(before)),
        inputs,
    )
    from_robot = made.plan(ChunkContinuation(delay=2, action_prefix=actions[3:]), inputs)
    assert from_model.guidance is not None
    assert from_robot.guidance is not None
    np.testing.assert_allclose(from_model.guidance.target, from_robot.guidance.target, atol=1e-5)
    moved = np.abs(from_model.guidance.target[: H - 3, 0] - chunk[3:, 0]).max()
    assert (moved > 1e-3) == (relative is not None)
    back = processor.finish(from_model.guidance.target, inputs)
    np.testing.assert_allclose(back[: H - 3], actions[3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("anchor", [None, np.zeros(7)])
def test_relative_actions_without_their_anchor_are_refused(anchor: Any) -> None:
    made, processor = make(delta_mask=LIBERO_RELATIVE)
    continuation = ChunkContinuation(delay=1, model_actions=leftover(4), anchor_state=anchor)
    with pytest.raises(ObservationError, match=r"'vlad/rtc/anchor_state': expected the 8 numbers"):
        made.plan(continuation, processor.prepare(observation_for("LIBERO")))


def test_actions_in_other_units_are_refused_with_the_number() -> None:
    made, processor = make()
    prefix = np.zeros((3, 7))
    prefix[1, 4] = 5000.0
    with pytest.raises(ObservationError, match=r"'vlad/rtc/action_prefix'.*5000 in column 4"):
        made.plan(
            ChunkContinuation(delay=1, action_prefix=prefix), processor.prepare(observation_for("LIBERO"))
        )


def test_a_model_chunk_that_its_new_anchor_throws_out_of_range_is_not_continued() -> None:
    made, processor = make(delta_mask=LIBERO_RELATIVE)
    continuation = ChunkContinuation(delay=1, model_actions=leftover(4), anchor_state=np.full(8, 10_000.0))
    planned = made.plan(continuation, processor.prepare(observation_for("LIBERO")))
    assert (planned.guidance, planned.mode) == (None, "off")
    assert planned.note == "the previous chunk lies outside the range of this checkpoint's statistics"


MADE, PROCESSOR = make(trained_max_delay=4)
INPUTS: ModelInputs = PROCESSOR.prepare(observation_for("LIBERO"))


@settings(max_examples=300, deadline=None)
@given(
    delay=st.integers(0, 2 * H),
    count=st.one_of(st.none(), st.integers(0, H)),
    end=st.one_of(st.none(), st.integers(0, 2 * H)),
    mode=st.sampled_from(("auto", "guided_identity", "guided_vjp", "trained", "off")),
    schedule=st.sampled_from(("exp", "linear", "ones", "zeros")),
)
def test_no_plan_reaches_past_the_leftover_and_every_deviation_has_a_note(
    delay: int, count: int | None, end: int | None, mode: Any, schedule: Any
) -> None:
    continuation = ChunkContinuation(
        delay=delay,
        model_actions=None if count is None else leftover(count),
        prefix_end=end,
        mode=mode,
        schedule=schedule,
    )
    made = MADE.plan(continuation, INPUTS)
    assert made.report()["valid_from"] == delay
    if made.guidance is None:
        assert made.mode == "off"
        assert made.note is not None or mode == "off"
        return
    assert count
    assert made.prefix_end <= count
    assert (made.guidance.weights[made.prefix_end :] == 0).all()
    assert made.guidance.weights.any() or made.guidance.frozen
    assert made.guidance.mode == made.mode
    held = min(delay, made.prefix_end)
    if made.mode == "trained":
        assert made.guidance.frozen == delay <= 4
    else:
        assert (made.guidance.weights[:held, :7] == 1).all()
    if made.mode != mode != "auto" or held < delay:
        assert made.note is not None
