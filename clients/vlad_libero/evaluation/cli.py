"""`eval_libero`: success of a served policy on LIBERO, closed loop."""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import shlex
import sys
from typing import Any, Mapping, Sequence

from vlad_libero.arguments import index_list
from vlad_libero.dataset.episode import load_episode
from vlad_libero.dataset.lerobot_v3 import write_dataset
from vlad_libero.errors import LiberoError
from vlad_libero.evaluation.playing import Playing
from vlad_libero.evaluation.plot import distinct_parts, plot_success
from vlad_libero.evaluation.protocol import QUICK_TASKS, QUICK_TRIALS, Protocol
from vlad_libero.evaluation.results import SUMMARY_FILE, EpisodeLog, EpisodeResult, summarise, write_summary
from vlad_libero.evaluation.run import EpisodeJob, Server, run_jobs
from vlad_libero.evaluation.table import table
from vlad_libero.progress_line import ProgressLine
from vlad_libero.simulator.cameras import RENDERINGS
from vlad_libero.simulator.package import AssetTree, choose_assets
from vlad_libero.simulator.suites import MAX_STEPS, suite_tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 where every episode ran, whatever its outcome."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    from vlad_client.errors import PolicyClientError

    try:
        return _run(options, shlex.join(["eval_libero", *given]))
    except (LiberoError, PolicyClientError) as error:
        print(f"eval_libero: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\neval_libero: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, command: str) -> int:
    if options.workers < 1 or options.videos < 0:
        raise LiberoError("--workers must be at least 1, --videos not negative")
    assets = choose_assets(options.assets)
    protocol = _protocol(options, assets)
    playing = Playing(protocol.replan_steps, options.delay_steps, options.play, options.rtc_prefix_end)
    tasks = suite_tasks(protocol.suite)
    if protocol.tasks[-1] >= len(tasks):
        raise LiberoError(f"{protocol.suite} has {len(tasks)} tasks, there is no task {protocol.tasks[-1]}")
    server = Server(options.host, options.port, options.api_key, options.image_encoding, options.quality)
    served = _served(server)
    if options.backend is not None and served["backend"] not in (None, options.backend):
        raise LiberoError(f"the server runs backend '{served['backend']}', not '{options.backend}'")
    run = {
        "backend": options.backend or served["backend"],
        "precision": served["precision"],
        "steps": served["num_denoising_steps"],
        "variant": options.variant or _variant(playing, server),
        "playing": playing.settings(),
        "images": server.image_encoding or "raw",
        "quality": server.quality,
        "served": served,
        "command": command,
    }
    print(f"eval_libero: {assets.kind} assets, rendering {protocol.rendering}, server {served}", flush=True)
    header = {key: value for key, value in run.items() if key != "command"}
    log = EpisodeLog(options.out, {**header, "protocol": protocol.to_json()})
    jobs = _jobs(protocol, playing, server, assets, options)
    _run_all(jobs, log, options.workers)
    prompts = {task.index: task.prompt for task in tasks}
    summary = summarise(protocol, log.results.values(), prompts, run)
    write_summary(options.out / SUMMARY_FILE, summary)
    print(table(summary))
    if options.plot:
        labels = distinct_parts([row["prompt"] for row in summary["per_task"]])
        rows = [
            (f"{row['task']}: {label}", row) for label, row in zip(labels, summary["per_task"], strict=True)
        ]
        plot_success(options.out / "success.png", [*rows, ("all", summary)])
    if options.record:
        _write_recording(options.out, jobs)
    print(f"eval_libero: {options.out / SUMMARY_FILE}")
    return 0


def _protocol(options: argparse.Namespace, assets: AssetTree) -> Protocol:
    tasks: Sequence[int] = range(len(suite_tasks(options.suite)))
    tasks = options.tasks if options.tasks is not None else (QUICK_TASKS if options.quick else tasks)
    trials = options.trials if options.trials is not None else (QUICK_TRIALS if options.quick else 50)
    # LIBERO's pictures are drawn as its policies saw them, ours as ours did.
    rendering = options.rendering or ("published" if assets.kind == "official" else "light")
    return Protocol(
        suite=options.suite,
        tasks=tuple(tasks),
        trials=trials,
        seed=options.seed,
        replan_steps=options.replan_steps,
        wait_steps=options.wait_steps,
        max_steps=options.max_steps,
        assets=assets.kind,
        rendering=rendering,
    )


def _served(server: Server) -> dict[str, Any]:
    """What the server says about its policy; None for what it does not say."""
    with server.connect() as client:
        metadata: Mapping[str, Any] = client.get_server_metadata()
    environment = metadata.get("environment")
    if environment not in (None, "LIBERO"):
        raise LiberoError(f"the server serves a policy for {environment}, start it with --env LIBERO")
    names = (
        "backend",
        "precision",
        "num_denoising_steps",
        "device",
        "checkpoint",
        "weights",
        "action_horizon",
    )
    return {name: metadata.get(name) for name in names}


def _variant(playing: Playing, server: Server) -> str:
    parts = (
        [playing.mode, f"delay {playing.delay_steps}"]
        if playing.delay_steps or playing.mode != "lockstep"
        else []
    )
    if server.image_encoding:
        parts.append(f"{server.image_encoding} q{server.quality or 90}")
    return ", ".join(parts) or "lockstep"


def _jobs(
    protocol: Protocol, playing: Playing, server: Server, assets: AssetTree, options: argparse.Namespace
) -> list[EpisodeJob]:
    jobs = []
    for task, trial in protocol.episodes():
        name = f"task{task:02d}-trial{trial:03d}"
        film = options.out / "videos" / f"{name}.{options.video_format}" if trial < options.videos else None
        record = options.out / "record.parts" / f"{name}.npz" if options.record else None
        jobs.append(EpisodeJob(protocol, playing, server, assets, task, trial, film, record))
    return jobs


def _run_all(jobs: Sequence[EpisodeJob], log: EpisodeLog, workers: int) -> None:
    already = sum((job.task, job.trial) in log.results for job in jobs)
    if already:
        print(f"eval_libero: {already} of {len(jobs)} episodes exist already")
    with ProgressLine("episodes", len(jobs) - already) as line:

        def show(result: EpisodeResult) -> None:
            successes = sum(result.success for result in log.results.values())
            line.advance(f"{successes}/{len(log.results)} successes")

        run_jobs(jobs, log, workers, show)


def _write_recording(out: pathlib.Path, jobs: Sequence[EpisodeJob]) -> None:
    if (out / "record").exists():
        return
    files = [job.record for job in jobs if job.record is not None and job.record.exists()]
    info = write_dataset(out / "record", [functools.partial(load_episode, file) for file in files])
    print(f"eval_libero: {info['total_episodes']} episodes recorded in {out / 'record'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="eval_libero", description=__doc__)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1")
    server.add_argument("--port", type=int, default=8000)
    server.add_argument("--api-key", default=os.environ.get("VLAD_API_KEY"), help="(VLAD_API_KEY)")
    server.add_argument("--backend", help="refuse a server with another one; the label in the results")
    server.add_argument("--image-encoding", choices=("jpeg", "png"), help="(plain arrays)")
    server.add_argument("--quality", type=int, help="of JPEG (90)")
    protocol = parser.add_argument_group("protocol, as published unless said otherwise")
    protocol.add_argument("--suite", choices=sorted(MAX_STEPS), default="libero_spatial")
    protocol.add_argument("--tasks", type=index_list, help="indices such as 0,2,5-7 (all)")
    protocol.add_argument("--trials", type=int, help="fixed initial states of each task (50)")
    protocol.add_argument(
        "--quick", action="store_true", help=f"tasks {QUICK_TASKS}, {QUICK_TRIALS} trials each"
    )
    protocol.add_argument("--seed", type=int, default=7, help="(7)")
    protocol.add_argument("--replan-steps", type=int, default=5, help="actions executed of a chunk (5)")
    protocol.add_argument("--wait-steps", type=int, default=10, help="while objects settle (10)")
    protocol.add_argument("--max-steps", type=int, default=0, help="(the suite's; 220 for libero_spatial)")
    protocol.add_argument("--assets", choices=("auto", "procedural", "official"), default="auto")
    protocol.add_argument("--rendering", choices=sorted(RENDERINGS), help="(published with official assets)")
    protocol.add_argument("--delay-steps", type=int, default=0, help="until a chunk arrives, simulated (0)")
    protocol.add_argument("--play", choices=("lockstep", "overlap", "rtc"), default="lockstep")
    protocol.add_argument(
        "--rtc-prefix-end",
        type=int,
        metavar="INDEX",
        help="with --play rtc: the old chunk draws only the actions before it (as far as the old one goes)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/libero"))
    output.add_argument("--variant", help="label in the results")
    output.add_argument("--videos", type=int, default=0, help="film so many trials of each task (0)")
    output.add_argument("--video-format", choices=("mp4", "gif"), default="mp4")
    output.add_argument("--record", action="store_true", help="keep all frames as a LeRobotDataset v3")
    output.add_argument("--plot", action="store_true", help="draw success.png")
    output.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="simulators (one per core)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
