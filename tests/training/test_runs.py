"""Whole runs: killed and resumed, alone and in two processes, and served by the daemon."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from tqdm import tqdm

from tests.support.daemon import start_daemon
from tests.support.robot import connect_robot
from tests.support.tiny_networks import tiny_config
from vlad_configs.errors import ConfigError
from vlad_configs.training import LearningRate, TrainConfig, train_config
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import SentencePieceTokenizer
from vlad_training.distributed import Processes, processes
from vlad_training.errors import TrainingError
from vlad_training.frames import Frames
from vlad_training.initial_weights import trainable_network
from vlad_training.invented_frames import InventedFrames
from vlad_training.prepared_frames import prepare_all
from vlad_training.run_directory import RunDirectory
from vlad_training.statistics import compute_norm_stats
from vlad_training.task import first_weights, task_contract, task_environment, task_tokenizer
from vlad_training.trainer import Materials, Trainer

ALONE = Processes(0, 1, torch.device("cpu"))
SOURCE_SIDE = 28


def tiny_training(**changes: object) -> TrainConfig:
    tiny = tiny_config("pi05")
    model = dataclasses.replace(
        tiny,
        siglip=dataclasses.replace(tiny.siglip, depth=1),
        vlm=dataclasses.replace(tiny.vlm, depth=2),
        expert=dataclasses.replace(tiny.expert, depth=2),
        vocab_size=512,
        max_token_len=96,
        action_dim=8,
    )
    config = TrainConfig(
        openpi_config="pi05_libero_small",
        model=model,
        from_scratch=True,
        num_steps=9,
        batch_size=4,
        learning_rate=LearningRate(2, 1e-3, 100, 1e-4),
        ema_decay=0.9,
        precision="fp32",
        weights_dtype="fp16",
        gradient_checkpointing=False,
        save_every=3,
        log_every=1,
    )
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def source_for(config: TrainConfig) -> InventedFrames:
    return InventedFrames(task_environment(config), episodes=1, side=SOURCE_SIDE)


def train(config: TrainConfig, directory: pathlib.Path, group: Processes = ALONE) -> None:
    """What the command does, without its command line."""
    contract, source = task_contract(config), source_for(config)
    stats, file = compute_norm_stats(source, contract), task_tokenizer(config, None, None)
    tokenizer = SentencePieceTokenizer(file, config.model.vocab_size)
    processor = Processor(contract, stats, tokenizer)
    frames = Frames(source, processor, config.model.action_horizon, config.model.action_dim)
    prepared = prepare_all(frames, 0, group.device, quiet=True)
    model = trainable_network(config.model, first_weights(config, None, tokenizer), group.device)
    run = RunDirectory(directory, config.keep_every)
    Trainer(config, Materials(model, prepared, stats, file), run, group).train(workers=0)


def forked(work: Callable[[], None]) -> int:
    """Start a process of its own, without importing everything again; returns its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        # tqdm's own is a semaphore that both share: killed while it draws, a child would keep it for ever.
        tqdm.set_lock(threading.RLock())
        work()
        code = 0
    finally:
        os._exit(code)


def losses(run: pathlib.Path) -> dict[int, float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {entry["step"]: entry["loss"] for entry in map(json.loads, lines)}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums depend on the number of threads, and OpenMP's threads do not survive a fork."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tiny_training(), run)
    assert list(losses(run)) == list(range(9))
    return run


def test_a_killed_run_goes_on_with_the_losses_it_would_have_had(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    child = forked(lambda: train(tiny_training(num_steps=100_000), tmp_path))
    end = time.monotonic() + 120
    while not (tmp_path / "3").is_dir() or max(losses(tmp_path), default=0) < 4:
        assert time.monotonic() < end
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    reached = RunDirectory(tmp_path, 1).steps()[-1]
    train(tiny_training(num_steps=reached + 3), tmp_path)
    if reached + 3 > 9:
        train(tiny_training(num_steps=reached + 3), uninterrupted)
    resumed, whole = losses(tmp_path), losses(uninterrupted)
    assert list(resumed) == list(range(reached + 3))
    assert {step: whole[step] for step in resumed} == resumed


def test_two_processes_have_the_losses_of_one(
    uninterrupted: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))

    def one_of_two(rank: int) -> None:
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ.update(variables)
        with processes("cpu", variables) as group:
            train(tiny_training(), tmp_path, group)

    children = [forked(lambda rank=rank: one_of_two(rank)) for rank in range(2)]  # type: ignore[misc]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    together, alone = losses(tmp_path), losses(uninterrupted)
    steps = range(9)
    np.testing.assert_allclose([together[s] for s in steps], [alone[s] for s in steps], rtol=2e-5)


def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path, keep_every=100)
    states = {step: {"step": step} for step in (3, 6)}
    for step, state in states.items():
        run.save(step, lambda path: None, state)
    (tmp_path / "6" / "train_state.pt").write_bytes((tmp_path / "6" / "train_state.pt").read_bytes()[:100])
    assert run.last_state(torch.device("cpu")) == {"step": 3}
    assert "6/train_state.pt is damaged" in caplog.text
    (tmp_path / "3" / "train_state.pt").unlink()
    with pytest.raises(TrainingError, match="none of the checkpoints"):
        run.last_state(torch.device("cpu"))


def test_a_run_is_neither_overwritten_nor_mixed_with_another(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path, keep_every=100)
    run.write_run({"seed": 1}, resume=False)
    run.save(3, lambda path: None, {"step": 3})
    with pytest.raises(TrainingError, match=r"up to step 3; continue with --resume"):
        run.write_run({"seed": 1}, resume=False)
    with pytest.raises(TrainingError, match="begun with another seed"):
        run.write_run({"seed": 2}, resume=True)
    run.write_run({"seed": 1}, resume=True)


def test_old_checkpoints_are_removed_but_for_those_to_keep(tmp_path: pathlib.Path) -> None:
    run = RunDirectory(tmp_path, keep_every=4)
    for step in range(1, 8):
        run.save(step, lambda path: None, {"step": step})
    assert run.steps() == [4, 6, 7]


@pytest.mark.slow
def test_the_daemon_serves_what_was_demonstrated(tmp_path: pathlib.Path) -> None:
    config = tiny_training(
        num_steps=120,
        batch_size=12,
        learning_rate=LearningRate(10, 1e-2, 120, 1e-4),
        ema_decay=0.95,
        augmentation=None,
        mask_padding=True,
        save_every=120,
    )
    source = source_for(config)
    train(config, tmp_path)
    directory = tmp_path / "120"
    horizon = config.model.action_horizon
    errors = []
    with start_daemon("--env=LIBERO", f"--checkpoint={directory}", "--device=cpu") as daemon:
        daemon.wait_ready(200)
        with connect_robot(daemon.port) as robot:
            for index in range(0, len(source) - horizon, 3):
                reply = robot.infer({**source.observation(index), "vlad/seed": index})
                errors.append(reply["actions"] - source.actions[index : index + horizon])
            assert robot.metadata["weights"] == "checkpoint"
    error = np.abs(errors).mean()
    indifferent = np.abs(source.actions - source.actions.mean(0)).mean()
    assert error < 0.4 * indifferent, (error, indifferent)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path: pathlib.Path) -> None:
    group = Processes(0, 3, torch.device("cpu"))
    with pytest.raises(ConfigError, match="batch_size 2 is no multiple of 3 processes"):
        Trainer(train_config("debug_pi05"), None, RunDirectory(tmp_path, 1), group)  # type: ignore[arg-type]
