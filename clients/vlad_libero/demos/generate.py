"""`generate_demos`: demonstrations in parallel, resumable, as a LeRobotDataset v3."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import sys
import time
from typing import Any, Sequence

from vlad_libero.arguments import index_list
from vlad_libero.dataset.episode import load_episode
from vlad_libero.dataset.lerobot_v3 import write_dataset
from vlad_libero.demos.demonstration import DemoBatch, DemoJob, DemoOutcome, DemoSettings, make_batch
from vlad_libero.errors import DatasetError, LiberoError
from vlad_libero.evaluation.statistics import wilson_interval
from vlad_libero.processes import in_processes
from vlad_libero.progress_line import ProgressLine
from vlad_libero.simulator.appearance import AppearanceRange
from vlad_libero.simulator.cameras import RENDERINGS
from vlad_libero.simulator.package import choose_assets
from vlad_libero.simulator.suites import suite_tasks

_SETTINGS_FILE = "settings.json"
_OUTCOMES_FILE = "outcomes.jsonl"
_BATCH = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where every demonstration asked for is in the dataset."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except LiberoError as error:
        print(f"generate_demos: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ngenerate_demos: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace) -> int:
    assets = choose_assets(options.assets)
    settings = DemoSettings(
        suite=options.suite,
        seed=options.seed,
        noise=options.noise,
        appearance=AppearanceRange(unchanged=1.0) if options.plain else AppearanceRange(),
        assets=assets,
        rendering=options.rendering,
    )
    if options.out.exists():
        raise DatasetError(f"{options.out} exists already; remove it, or choose another --out")
    known = range(len(suite_tasks(settings.suite)))
    tasks = known if options.tasks is None else options.tasks
    if unknown := [task for task in tasks if task not in known]:
        raise LiberoError(f"{settings.suite} has no task {unknown[0]}")
    if options.per_task < 1 or options.workers < 1:
        raise LiberoError("--per-task and --workers must be at least 1")
    parts = options.out.with_name(options.out.name + ".parts")
    _continue_or_begin(parts, settings)
    jobs = [
        DemoJob(settings, task, number, parts / f"task{task:02d}-{number:05d}.npz")
        for task in tasks
        for number in range(options.per_task)
    ]
    print(f"generate_demos: {assets.kind} assets in {assets.directory}", flush=True)
    end_time = None if options.time_limit is None else time.time() + options.time_limit
    _make(jobs, parts, options.workers, end_time)
    made = [job for job in jobs if job.path.exists()]
    _report(jobs, parts)
    loaders = [functools.partial(load_episode, job.path) for job in made]
    info = write_dataset(options.out, loaders)
    print(
        f"generate_demos: {info['total_episodes']} episodes, {info['total_frames']} frames in {options.out}"
    )
    if not options.keep_parts:
        for path in parts.iterdir():
            path.unlink()
        parts.rmdir()
    if len(made) < len(jobs):
        print(f"generate_demos: {len(jobs) - len(made)} demonstrations are missing", file=sys.stderr)
    return 0 if len(made) == len(jobs) or options.time_limit is not None else 1


def _make(jobs: Sequence[DemoJob], parts: pathlib.Path, workers: int, end_time: float | None) -> None:
    missing = [job for job in jobs if not job.path.exists()]
    if len(missing) < len(jobs):
        print(f"generate_demos: {len(jobs) - len(missing)} of {len(jobs)} demonstrations exist already")
    started, frames = time.monotonic(), 0
    with ProgressLine("demonstrations", len(missing)) as line, (parts / _OUTCOMES_FILE).open("a") as log:
        for outcomes in in_processes(make_batch, batches(missing, workers, end_time), workers):
            for outcome in outcomes:
                log.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
                frames += outcome.frames
                line.advance(f"{frames / (time.monotonic() - started):.0f} frames/s")
            log.flush()


def batches(jobs: Sequence[DemoJob], workers: int, end_time: float | None = None) -> list[DemoBatch]:
    """The jobs in batches of one task each, the tasks taking turns, so that time cut short hits all alike."""
    size = max(1, min(_BATCH, len(jobs) // max(1, workers)))
    of_task: dict[int, list[DemoJob]] = collections.defaultdict(list)
    for job in jobs:
        of_task[job.task].append(job)
    rows = [
        [DemoBatch(tuple(group[start : start + size]), end_time) for start in range(0, len(group), size)]
        for group in of_task.values()
    ]
    turns = itertools.zip_longest(*rows)
    return [batch for turn in turns for batch in turn if batch is not None]


def _report(jobs: Sequence[DemoJob], parts: pathlib.Path) -> None:
    """The expert's own success per task: demonstrations kept, of scenes tried."""
    kept: dict[int, int] = collections.Counter()
    tried: dict[int, int] = collections.Counter()
    asked = {(job.task, job.number) for job in jobs}
    for text in (parts / _OUTCOMES_FILE).read_text().splitlines():
        outcome = DemoOutcome(**json.loads(text))
        if (outcome.task, outcome.number) in asked:
            kept[outcome.task] += outcome.frames > 0
            tried[outcome.task] += outcome.attempts
    for task in sorted(tried):
        low, high = wilson_interval(kept[task], tried[task])
        print(f"  task {task}: expert {kept[task]}/{tried[task]} scenes, 95 % {low:.2f} to {high:.2f}")


def _continue_or_begin(parts: pathlib.Path, settings: DemoSettings) -> None:
    """Refuse to mix demonstrations of different settings."""
    wanted = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    path = parts / _SETTINGS_FILE
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
        written: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{parts} cannot be used: {error}") from error
    different = sorted(key for key in {*written, *wanted} if written.get(key) != wanted.get(key))
    if different:
        raise DatasetError(
            f"{parts} holds demonstrations made with other settings ({', '.join(different)}); "
            "remove it, or choose another --out"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="generate_demos", description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the dataset")
    parser.add_argument("--suite", default="libero_spatial")
    parser.add_argument("--tasks", type=index_list, help="indices such as 0,2,5-7 (default: all)")
    parser.add_argument("--per-task", type=int, default=100, help="demonstrations of each task (100)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.15, help="disturbance of executed actions (0.15)")
    parser.add_argument("--plain", action="store_true", help="keep colours, textures and light as they are")
    parser.add_argument("--assets", choices=("auto", "procedural", "official"), default="auto")
    parser.add_argument("--rendering", choices=sorted(RENDERINGS), default="light")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one per core)")
    parser.add_argument("--time-limit", type=float, help="seconds; the dataset holds what was made by then")
    parser.add_argument("--keep-parts", action="store_true", help="keep the single episodes as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
