"""The command `bench_policy`."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import shlex
import sys
from collections.abc import Mapping

import torch
import tyro

from vlad_configs.errors import ConfigError, VladError
from vlad_configs.pruning import Positions, PruningMode
from vlad_engines.backends.choice import parse_batches, parse_choices
from vlad_engines.bench.case import RequestShape
from vlad_engines.bench.device import device_name, device_state, file_slug, software
from vlad_engines.bench.plan import Mode, Plan, parse_names, parse_prunings
from vlad_engines.bench.results import RESULTS_DIRECTORY, Results, commit_of_this_code, today
from vlad_engines.bench.roofline import device_peaks
from vlad_engines.bench.row import BenchRow, with_speedups
from vlad_engines.bench.runner import run_plan
from vlad_engines.checkpoint.random_checkpoint import RANDOM_PREFIX


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure a policy, and write the figures with all that is needed to repeat them."""

    random_weights: str | None = None
    """Networks with random weights, several with commas: pi05, pi0, pi05_dummy, pi0_dummy."""
    checkpoint: str | None = None
    """Checkpoint to measure instead of random weights."""
    env: str = "LIBERO"
    """Robot, which decides about cameras and horizon where the options below do not."""
    mode: tuple[Mode, ...] = ("engine",)
    """engine: the backend alone; policy: with processing; loopback: daemon and websocket on this host."""
    backend: str = "pytorch"
    """Backends, several with commas; NAME:PRECISION overrides --precision. Ratios are to the first."""
    precision: str | None = None
    """fp32, bf16 or fp8; bf16 on a GPU and fp32 on a CPU where not given."""
    device: str | None = None
    """Torch device; the first GPU, or else the CPU, where not given."""
    cameras: int = 2
    """Real cameras of a request, in mode engine."""
    prompt_tokens: int = 20
    """Real prompt tokens of a request."""
    chunk: int | None = None
    """Action horizon, in mode engine; that of the robot's configuration where not given."""
    num_steps: int = 10
    """Denoising steps."""
    keep_tokens: str = "all"
    """Token pruning: how many image tokens the prefix keeps, several with commas, such as all,64,24."""
    pruning_mode: PruningMode = "fixed"
    """fixed: fill every slot; union: keep the tokens that any token voted for, and mask what is left."""
    pruning_positions: Positions = "original"
    """Where kept tokens stand: at their place in the unpruned prefix, or counted anew."""
    batch: str = "1"
    """Batch sizes, several with commas, in mode engine."""
    warm_up: int = 20
    """Runs before the measurement."""
    repetitions: int = 200
    """Measured runs; figures to be compared with others need 50 or more."""
    name: str = "bench"
    """Last part of docs/results/<date>-<gpu>-<name>.json, where the figures go."""
    json: pathlib.Path | None = None
    """Another place for the figures."""
    plot: pathlib.Path | None = None
    """Also draw the stages against the floor, into this PNG."""
    commit: str | None = None
    """Commit to note where the code does not lie in its repository."""


def make_plan(args: Args) -> Plan:
    """Turn parsed arguments into a checked plan.

    Raises:
        ConfigError: for contradictions and unknown names.
    """
    if (args.random_weights is None) == (args.checkpoint is None):
        raise ConfigError("name either --random-weights or --checkpoint")
    if args.checkpoint is not None:
        checkpoints: tuple[str, ...] = (args.checkpoint,)
    else:
        checkpoints = tuple(f"{RANDOM_PREFIX}{size}" for size in parse_names(args.random_weights or ""))
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = args.precision or ("bf16" if device.startswith("cuda") else "fp32")
    return Plan(
        modes=args.mode,
        checkpoints=checkpoints,
        environment=args.env,
        backends=parse_choices(args.backend, precision),
        prunings=parse_prunings(args.keep_tokens, args.pruning_mode, args.pruning_positions),
        device=device,
        shape=RequestShape(args.cameras, args.prompt_tokens),
        chunk=args.chunk,
        steps=args.num_steps,
        batches=parse_batches(args.batch),
        warm_up=args.warm_up,
        repetitions=args.repetitions,
    )


def run(args: Args, command: str) -> Results:
    """Measure what was asked for, and print a line per row as it comes.

    Raises:
        VladError: for arguments that cannot work, and where a backend fails.
    """
    plan = make_plan(args)
    gpu = device_name(plan.device)
    peaks = device_peaks(gpu)
    before = device_state(plan.device)
    commit = args.commit or commit_of_this_code()
    print(_HEADER)  # noqa: T201
    rows: list[BenchRow] = []
    for row in run_plan(plan, command=command, commit=commit):
        rows = with_speedups([*rows, row])
        print(_line(rows[-1]), flush=True)  # noqa: T201
        if row.path_ms is not None:
            print(_path_line(row.path_ms), flush=True)  # noqa: T201
    return Results(
        name=args.name,
        date=today(),
        gpu=gpu,
        command=command,
        commit=commit,
        software=software(),
        device_before=before,
        device_after=device_state(plan.device),
        floor_source=None if peaks is None else peaks.source,
        rows=rows,
    )


_HEADER = (
    f"{'mode':<9}{'model':<11}{'backend':<16}{'K':>5}{'B':>3}{'gpu p50':>9}{'p90':>8}{'p99':>8}"
    f"{'vision':>8}{'prefix':>8}{'denoise':>9}{'floor':>7}{'wall':>8}{'req/s':>8}"
    f"{'GiB':>7}{'start s':>8}{'ratio':>7}"
)


def _line(row: BenchRow) -> str:
    gpu, stages = row.gpu_ms, row.stages_ms
    least = "-" if row.floor_ms is None else f"{row.floor_ms['total']:.2f}"
    memory = "-" if row.memory_gib is None else f"{row.memory_gib:.2f}"
    ratio = "-" if row.speedup is None else f"{row.speedup:.2f}"
    kept = "all" if row.pruning is None else row.pruning["keep_tokens"]
    return (
        f"{row.mode:<9}{row.model:<11}{row.backend + ':' + row.precision:<16}{kept:>5}{row.batch:>3}"
        f"{gpu['p50']:>9.3f}{gpu['p90']:>8.3f}{gpu['p99']:>8.3f}"
        f"{stages['vision']:>8.3f}{stages['prefix']:>8.3f}{stages['denoise']:>9.3f}"
        f"{least:>7}{row.wall_ms:>8.3f}{row.requests_per_s:>8.1f}{memory:>7}{row.start_s:>8.1f}{ratio:>7}"
    )


def _path_line(path_ms: Mapping[str, float]) -> str:
    return "# path: " + ", ".join(f"{part} {time_ms:.3f}" for part, time_ms in path_ms.items())


def main() -> None:
    """Entry point of `bench_policy`."""
    args = tyro.cli(Args, prog="bench_policy")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        results = run(args, f"bench_policy {shlex.join(sys.argv[1:])}".strip())
    except VladError as error:
        print(f"bench_policy: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    path = args.json
    if path is None:
        path = RESULTS_DIRECTORY / f"{results.date}-{file_slug(results.gpu)}-{args.name}.json"
    results.write(path)
    print(f"# figures: {path}")  # noqa: T201
    if args.plot is not None:
        from vlad_engines.bench.plot import draw

        draw(results, args.plot)
        print(f"# plot: {args.plot}")  # noqa: T201


if __name__ == "__main__":
    main()
