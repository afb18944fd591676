from __future__ import annotations

import inspect
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from tests.support.checkpoints import (
    lerobot_config,
    small_model,
    small_tensors,
    stats_for,
    write_lerobot,
    write_libero,
    write_openpi,
)
from tests.support.libero import libero_observation
from tests.support.observations import observation_for
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import CheckpointError, ConfigError, EngineError, ObservationError
from vlad_configs.models import Family
from vlad_configs.openpi_configs import OPENPI_CONFIGS
from vlad_engines.checkpoint.demo import demo_checkpoint
from vlad_engines.unified_policy import UnifiedPolicy

TIMING_KEYS = {
    *("infer_ms", "preprocess_ms", "vision_ms", "prefix_ms", "denoise_ms"),
    *("overlapped_ms", "postprocess_ms"),
}


@pytest.fixture(scope="module")
def libero(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_libero(tmp_path_factory.mktemp("libero"))


@pytest.fixture(scope="module")
def policy(libero: pathlib.Path) -> Iterator[UnifiedPolicy]:
    policy = UnifiedPolicy(str(libero), device="cpu")
    yield policy
    policy.close()


def write_robot(directory: pathlib.Path, config: str) -> pathlib.Path:
    """A checkpoint of the small model for one of openpi's configurations."""
    entry = OPENPI_CONFIGS[config]
    model = small_model(entry.family)
    stats = stats_for(ENVIRONMENTS[entry.environment])
    return write_openpi(directory, model, small_tensors(model), stats=stats, asset_id=entry.asset_id)


@pytest.mark.parametrize("config", ["pi05_libero", "pi0_libero", "pi05_droid", "pi05_aloha", "pi0_aloha_sim"])
def test_every_robot_gets_finite_float64_actions_of_its_width(config: str, tmp_path: pathlib.Path) -> None:
    robot = ENVIRONMENTS[OPENPI_CONFIGS[config].environment]
    policy = UnifiedPolicy(str(write_robot(tmp_path, config)), env=robot.name, config=config, device="cpu")
    reply = policy.infer(observation_for(robot.name))
    assert reply["actions"].dtype == np.float64
    assert reply["actions"].shape == (6, robot.action_width)
    assert np.isfinite(reply["actions"]).all()


def test_the_same_seed_gives_the_same_chunk_bit_by_bit(policy: UnifiedPolicy, libero: pathlib.Path) -> None:
    observation = libero_observation()
    first = policy.infer(observation, seed=7)["actions"]
    policy.infer(observation)
    again = policy.infer(observation, seed=np.int64(7))["actions"]
    restarted = UnifiedPolicy(str(libero), device="cpu").infer(observation, seed=7)["actions"]
    assert first.tobytes() == again.tobytes() == restarted.tobytes()
    assert not np.array_equal(first, policy.infer(observation, seed=8)["actions"])


def test_without_a_seed_every_chunk_differs(policy: UnifiedPolicy) -> None:
    chunks = [policy.infer(libero_observation())["actions"] for _ in range(2)]
    assert not np.array_equal(*chunks)


def test_given_noise_decides_the_chunk_with_or_without_a_batch_axis(policy: UnifiedPolicy) -> None:
    noise = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    plain = policy.infer(libero_observation(), noise=noise)["actions"]
    batched = policy.infer(libero_observation(), noise=noise[None])["actions"]
    assert plain.tobytes() == batched.tobytes()


@pytest.mark.parametrize(
    "noise",
    [
        np.zeros((6, 7), np.float32),
        np.zeros((2, 6, 32), np.float32),
        np.zeros((6, 32), np.int64),
        np.full((6, 32), np.nan, np.float32),
        np.full((6, 32), 1e300),
        [[0.0], [0.0, 1.0]],
        "noise",
    ],
)
def test_noise_that_does_not_fit_is_refused_with_the_shape(policy: UnifiedPolicy, noise: Any) -> None:
    with pytest.raises(ObservationError, match=r"'vlad/noise'.*\[6, 32\]"):
        policy.infer(libero_observation(), noise=noise)


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True, [1, 2], np.zeros(3, np.int64)])
def test_a_seed_that_is_none_is_refused(policy: UnifiedPolicy, seed: Any) -> None:
    with pytest.raises(ObservationError, match="'vlad/seed'"):
        policy.infer(libero_observation(), seed=seed)


def test_noise_and_seed_together_are_refused(policy: UnifiedPolicy) -> None:
    with pytest.raises(ObservationError, match="either a seed or noise"):
        policy.infer(libero_observation(), noise=np.zeros((6, 32), np.float32), seed=1)


def test_timing_has_the_same_numeric_keys_in_every_reply(policy: UnifiedPolicy) -> None:
    for _ in range(3):
        timing = policy.infer(libero_observation())["policy_timing"]
        assert set(timing) == TIMING_KEYS
        assert timing.pop("overlapped_ms") == 0.0, "of one request at a time nothing overlaps"
        assert all(type(value) is float and value > 0 for value in timing.values())
        stages = timing["vision_ms"] + timing["prefix_ms"] + timing["denoise_ms"]
        assert stages <= timing["infer_ms"] * 1.05


def test_metadata_travels_as_json_and_msgpack(policy: UnifiedPolicy) -> None:
    metadata = policy.metadata
    assert json.loads(json.dumps(metadata)) == metadata
    assert msgpack.unpackb(msgpack.packb(metadata)) == metadata
    assert metadata["action_horizon"] == 6
    assert metadata["action_dim"] == 7
    assert metadata["noise_shape"] == [6, 32]
    assert metadata["image_keys"] == ["observation/image", "observation/wrist_image"]
    assert metadata["state_dim"] == 8
    assert metadata["num_denoising_steps"] == 10
    assert (metadata["backend"], metadata["precision"]) == ("pytorch", "fp32")
    assert set(metadata["components"]) == {"vision", "prefix", "denoise"}
    assert metadata["weights"] == "checkpoint"


def test_metadata_names_no_path_of_this_machine(policy: UnifiedPolicy, libero: pathlib.Path) -> None:
    assert str(libero.parent) not in json.dumps(policy.metadata)


def test_the_robots_own_metadata_lies_at_the_top(tmp_path: pathlib.Path) -> None:
    policy = UnifiedPolicy(
        str(write_robot(tmp_path, "pi05_aloha")), env="ALOHA", config="pi05_aloha", device="cpu"
    )
    assert policy.metadata["reset_pose"] == [0, -1.5, 1.5, 0, 0, 0]


def test_a_default_prompt_admits_requests_without_one(libero: pathlib.Path, policy: UnifiedPolicy) -> None:
    observation = libero_observation(prompt="wipe the table")
    with_prompt = policy.infer(observation, seed=1)["actions"]
    del observation["prompt"]
    with pytest.raises(ObservationError, match="'prompt'"):
        policy.infer(observation)
    defaulted = UnifiedPolicy(str(libero), device="cpu", default_prompt="wipe the table")
    assert defaulted.metadata["default_prompt"] == "wipe the table"
    assert policy.metadata["default_prompt"] is None
    np.testing.assert_array_equal(defaulted.infer(observation, seed=1)["actions"], with_prompt)


def test_steps_and_cache_are_options(libero: pathlib.Path, policy: UnifiedPolicy) -> None:
    reference = policy.infer(libero_observation(), seed=3)["actions"]
    uncached = UnifiedPolicy(str(libero), enable_kv_cache=False, device="cpu")
    np.testing.assert_allclose(uncached.infer(libero_observation(), seed=3)["actions"], reference, atol=1e-4)
    three = UnifiedPolicy(str(libero), num_denoising_steps=3, device="cpu")
    assert three.metadata["num_denoising_steps"] == 3
    assert np.abs(three.infer(libero_observation(), seed=3)["actions"] - reference).max() > 1e-3


def test_unknown_options_are_named_with_the_known_ones(libero: pathlib.Path) -> None:
    with pytest.raises(
        TypeError, match=r"unknown options 'num_step', 'gpu'; known: checkpoint_dir, backend"
    ) as caught:
        UnifiedPolicy(str(libero), num_step=3, gpu=0)
    for name in inspect.signature(UnifiedPolicy).parameters:
        if name != "unknown":
            assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "onnx"}, "unknown backend 'onnx'"),
        ({"num_denoising_steps": 0}, "num_steps must be at least 1"),
        ({"num_denoising_steps": 2.5}, "must be an integer"),
        ({"precision": "int4"}, "precision must be one of fp32, tf32, .* not 'int4'"),
        ({"precision": "fp16"}, "backend 'pytorch' computes in fp32 or bf16, not fp16"),
        ({"engine_dir": "engines"}, "engine_dir is for TensorRT's backends, not for 'pytorch'"),
        ({"engine_dir": "engines", "calibration": "some.mcap"}, "calibrated already: leave calibration out"),
        ({"device": "tpu"}, "device must be"),
        ({"env": "KITCHEN"}, "unknown environment 'KITCHEN'"),
        ({"config": "pi05_kitchen"}, "config 'pi05_kitchen' not found"),
    ],
)
def test_options_that_cannot_work_are_refused(
    libero: pathlib.Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        UnifiedPolicy(str(libero), **options)


def test_a_missing_checkpoint_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        UnifiedPolicy(str(tmp_path / "gone"))


def test_a_closed_policy_answers_nothing(libero: pathlib.Path) -> None:
    policy = UnifiedPolicy(str(libero), device="cpu")
    policy.close()
    with pytest.raises(EngineError, match="closed"):
        policy.infer(libero_observation())


def test_progress_is_reported_from_start_to_end(libero: pathlib.Path) -> None:
    stages: list[tuple[str, float]] = []
    policy = UnifiedPolicy(str(libero), device="cpu", progress=lambda *stage: stages.append(stage))
    loaded = len(stages)
    policy.warm_up(lambda *stage: stages.append(stage))
    assert loaded >= 2
    assert len(stages) > loaded
    assert all(stage and 0 <= fraction <= 1 for stage, fraction in stages)


def test_the_demo_serves_libero_and_says_that_it_is_random(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    demo = demo_checkpoint(tmp_path)
    policy = UnifiedPolicy(demo, device="cpu")
    assert "the weights are random" in caplog.text
    assert policy.metadata["weights"] == "random"
    assert policy.contract.environment.name == "LIBERO"
    actions = policy.infer(libero_observation(), seed=0)["actions"]
    assert actions.shape == (10, 7)
    again = UnifiedPolicy(demo, device="cpu").infer(libero_observation(), seed=0)["actions"]
    assert actions.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    ("family", "environment", "config", "cameras", "prompt"),
    [
        ("pi05", "DROID", "pi05_droid", ("front", "wrist"), "wipe the_table"),
        ("pi0", "LIBERO", "pi0_libero", ("image", "image2"), "wipe the table"),
    ],
)
def test_both_layouts_of_one_policy_act_alike(
    family: Family,
    environment: str,
    config: str,
    cameras: tuple[str, ...],
    prompt: str,
    tmp_path: pathlib.Path,
) -> None:
    """Where the mathematics agree: 224x224 images, a clean prompt, spans far above the epsilons."""
    robot, model = ENVIRONMENTS[environment], small_model(family)
    stats, tensors = stats_for(robot), small_tensors(model)
    asset_id = OPENPI_CONFIGS[config].asset_id
    openpi = write_openpi(tmp_path / "openpi", model, tensors, stats=stats, asset_id=asset_id)
    names = ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    relative = {"enabled": True, "exclude_joints": ["gripper"], "action_names": names}
    lerobot = write_lerobot(
        tmp_path / "lerobot",
        lerobot_config(model, robot, cameras),
        tensors,
        stats=stats,
        relative=relative if OPENPI_CONFIGS[config].delta_mask else None,
    )
    observation = {**observation_for(environment), "prompt": prompt}
    replies = [
        UnifiedPolicy(str(openpi), env=environment, config=config, device="cpu").infer(observation, seed=1),
        UnifiedPolicy(str(lerobot), env=environment, device="cpu").infer(observation, seed=1),
    ]
    np.testing.assert_allclose(replies[0]["actions"], replies[1]["actions"], rtol=0, atol=1e-4)


# ---- several requests ----


def test_started_chunks_are_those_of_infer_in_whatever_order_they_are_taken(policy: UnifiedPolicy) -> None:
    expected = [policy.infer(libero_observation(seed), seed=seed)["actions"] for seed in range(3)]
    pending = [policy.start(libero_observation(seed), seed=seed) for seed in range(3)]
    for seed in (2, 0, 1):
        reply = pending[seed].result()
        assert reply["actions"].tobytes() == expected[seed].tobytes()
        assert set(reply["policy_timing"]) == TIMING_KEYS
        assert pending[seed].done()
        assert pending[seed].result() is reply


def test_what_fails_after_the_start_is_raised_by_the_result(policy: UnifiedPolicy) -> None:
    with pytest.raises(ObservationError, match="'vlad/seed'"):
        policy.start(libero_observation(), seed=-1)
    closed = UnifiedPolicy("random:pi05_dummy", device="cpu")
    closed.close()
    pending = closed.start(libero_observation())
    with pytest.raises(EngineError, match="closed"):
        pending.result()


def test_a_sequential_backend_overlaps_nothing_and_takes_one_observation(policy: UnifiedPolicy) -> None:
    assert policy.overlap is None
    assert policy.batch_sizes == (1,)
    assert policy.metadata["batch_sizes"] == [1]
    (reply,) = policy.infer_batch([libero_observation()], seeds=[5])
    np.testing.assert_array_equal(reply["actions"], policy.infer(libero_observation(), seed=5)["actions"])
    with pytest.raises(ConfigError, match=r"2 observations at once; this policy takes \[1\]"):
        policy.infer_batch([libero_observation()] * 2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 2), r"backend 'pytorch' computes one request at a time: batch_sizes must be \(1,\)"),
        ((2,), "with 1 among them"),
        ((0, 1), "with 1 among them"),
        ((), "with 1 among them"),
    ],
)
def test_batches_that_cannot_be_are_refused(
    libero: pathlib.Path, sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        UnifiedPolicy(str(libero), device="cpu", batch_sizes=sizes)
