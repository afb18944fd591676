"""The command `train_policy`: trains a configuration on a dataset; also `python -m vlad_training.train`."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import sys
from typing import Annotated, Literal

import torch
import tyro

from vlad_configs.contract import Contract
from vlad_configs.errors import ConfigError, VladError
from vlad_configs.training import TrainConfig, train_config
from vlad_engines.checkpoint.norm_stats import read_norm_stats_json
from vlad_engines.processing.normalization import NormStats
from vlad_engines.processing.processor import Processor
from vlad_engines.processing.tokenizer import SentencePieceTokenizer
from vlad_training.distributed import Processes, processes
from vlad_training.frames import Frames, FrameSource
from vlad_training.initial_weights import trainable_network
from vlad_training.invented_frames import InventedFrames
from vlad_training.lerobot_dataset import LeRobotDataset
from vlad_training.prepared_frames import PreparedFrames, prepare_all
from vlad_training.run_directory import RunDirectory
from vlad_training.statistics import compute_norm_stats
from vlad_training.task import first_weights, overridden, task_contract, task_environment, task_tokenizer
from vlad_training.trainer import Materials, Trainer

logger = logging.getLogger("vlad.training")

INVENTED = "invented"


@dataclasses.dataclass(frozen=True)
class Args:
    """Train a pi0 / pi0.5 policy. Every checkpoint that it writes can be served as it is."""

    config: Annotated[str, tyro.conf.Positional]
    """Training configuration, such as pi05_libero_small."""
    data: str
    """LeRobotDataset v3 directory; `invented` for made-up frames that only show that everything runs."""
    output: pathlib.Path
    """Directory of the run."""
    resume: bool = False
    """Continue from the newest checkpoint in the run's directory; from the beginning where there is none."""
    weights: pathlib.Path | None = None
    """Checkpoint directory to fine-tune, openpi PyTorch or LeRobot."""
    tokenizer: str | None = None
    """SentencePiece model; the checkpoint's, or for small vocabularies the packaged one, where not given."""
    norm_stats: pathlib.Path | None = None
    """norm_stats.json; computed from the dataset where not given."""
    camera: tuple[str, ...] = ()
    """KEY=FEATURE: request key of a camera and the dataset's feature, where it is not the usual one."""
    device: str | None = None
    """Torch device; this process's GPU, or else the CPU, where not given."""
    workers: int = 4
    """Processes that decode and prepare frames."""
    cache: Literal["none", "memory", "device"] = "none"
    """`memory` and `device` prepare every frame once and keep it, here or on the GPU."""

    steps: int | None = None
    """Steps to train; the learning rate's way down stays as long as the configuration has it."""
    schedule_steps: int | None = None
    """Steps to train, with the learning rate's whole schedule, warm-up included, stretched to as many."""
    batch_size: int | None = None
    """Samples per step, of all processes together."""
    precision: Literal["fp32", "bf16"] | None = None
    """Arithmetic; master weights are float32 either way."""
    save_every: int | None = None
    """Steps between checkpoints."""
    log_every: int | None = None
    """Steps between log lines."""
    rtc_max_delay: int | None = None
    """Train for real-time chunking with up to this many first actions given, fewer than the horizon."""
    seed: int | None = None
    """Of everything that is drawn."""


def train(args: Args) -> None:
    """Do what the command line says.

    Raises:
        VladError: for everything that a person can repair.
    """
    config = overridden(
        _scheduled(train_config(args.config), args),
        num_steps=args.steps,
        batch_size=args.batch_size,
        precision=args.precision,
        save_every=args.save_every,
        log_every=args.log_every,
        rtc_max_delay=args.rtc_max_delay,
        seed=args.seed,
    )
    if args.workers < 0:
        raise ConfigError(f"--workers must not be negative, not {args.workers}")
    contract = task_contract(config)
    tokenizer_file = task_tokenizer(config, args.weights, args.tokenizer)
    tokenizer = SentencePieceTokenizer(tokenizer_file, config.model.vocab_size)
    source = _source(args, config)
    stats = _norm_stats(args, source, contract)
    processor = Processor(contract, stats, tokenizer)
    frames = Frames(source, processor, config.model.action_horizon, config.model.action_dim)
    with processes(args.device) as group:
        run = _open_run(args, config, len(frames), group)
        kept: Frames | PreparedFrames = frames
        if args.cache != "none":
            place = group.device if args.cache == "device" else torch.device("cpu")
            kept = prepare_all(frames, args.workers, place, quiet=not group.is_first)
        model = trainable_network(config.model, first_weights(config, args.weights, tokenizer), group.device)
        if group.is_first:
            count = sum(parameter.numel() for parameter in model.parameters())
            logger.info("%s: %.2f M parameters, %d frames", args.config, count / 1e6, len(frames))
        Trainer(config, Materials(model, kept, stats, tokenizer_file), run, group).train(args.workers)


def _scheduled(config: TrainConfig, args: Args) -> TrainConfig:
    if args.schedule_steps is None:
        return config
    if args.steps is not None:
        raise ConfigError("--steps and --schedule-steps exclude each other")
    before = config.learning_rate
    warmup = before.warmup_steps * args.schedule_steps // before.decay_steps
    rate = dataclasses.replace(before, warmup_steps=warmup, decay_steps=args.schedule_steps)
    return dataclasses.replace(config, num_steps=args.schedule_steps, learning_rate=rate)


def _source(args: Args, config: TrainConfig) -> FrameSource:
    environment = task_environment(config)
    if args.data == INVENTED:
        return InventedFrames(environment)
    pairs = [pair.partition("=") for pair in args.camera]
    if wrong := [pair for pair, (_, sign, feature) in zip(args.camera, pairs, strict=True) if not feature]:
        raise ConfigError(f"--camera must be KEY=FEATURE, not '{wrong[0]}'")
    cameras = {key: feature for key, _, feature in pairs}
    return LeRobotDataset(pathlib.Path(args.data).expanduser(), environment, cameras)


def _norm_stats(args: Args, source: FrameSource, contract: Contract) -> NormStats:
    if args.norm_stats is not None:
        return read_norm_stats_json(args.norm_stats)
    logger.info("computing norm stats of %d frames", len(source))
    return compute_norm_stats(source, contract)


def _open_run(args: Args, config: TrainConfig, frames: int, group: Processes) -> RunDirectory:
    run = RunDirectory(args.output, config.keep_every)
    if group.is_first:
        description = dataclasses.asdict(config)
        # More steps, other logging: still the same run.
        for name in ("num_steps", "save_every", "keep_every", "log_every"):
            del description[name]
        run.write_run({"config": args.config, "frames": frames, **description}, resume=args.resume)
    group.barrier()
    return run


def main() -> None:
    """Entry point of `train_policy`."""
    args = tyro.cli(Args, prog="train_policy")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        train(args)
    except VladError as error:
        print(f"train_policy: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
