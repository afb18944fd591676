"""The command `replay_requests`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import pathlib
import sys
from typing import Annotated

import numpy as np
import tyro

from vlad_configs.errors import ConfigError, VladError
from vlad_configs.serving import BackendName
from vlad_engines.replay.replay import replay
from vlad_engines.unified_policy import UnifiedPolicy
from vlad_server.recordings.comparison import compare
from vlad_server.recordings.reader import open_recording
from vlad_server.recordings.run_file import Run, load_run


@dataclasses.dataclass(frozen=True)
class Args:
    """Compute the chunks of recorded requests again, each from its recorded noise.

    The chunks go to a file for `compare_runs`; how far they are from the recorded ones is printed.
    """

    file: Annotated[pathlib.Path, tyro.conf.Positional]
    """Recording of `serve_policy --record` (mcap)."""
    checkpoint: str
    """Checkpoint directory, `demo`, or `random:pi05`."""
    out: pathlib.Path | None = None
    """Where the chunks go; FILE.BACKEND.npz beside the recording where not given."""
    backend: BackendName = "pytorch"
    """Engine that computes them."""
    precision: str | None = None
    """fp32, bf16 or fp8; bf16 on a GPU and fp32 on a CPU where not given."""
    device: str | None = None
    """Torch device; the first GPU, or else the CPU, where not given."""
    num_steps: int | None = None
    """Denoising steps; the recorded number where not given."""
    limit: int | None = None
    """How many requests, from the first; all of them where not given."""
    config: str | None = None
    """openpi configuration name, where the checkpoint needs one."""
    keep_all_tokens: bool = False
    """Do not prune image tokens, whatever the recorded policy did; as recorded where not given."""
    engine_dir: str | None = None
    """Folder of prebuilt TensorRT engines, which is only read."""
    calibration: str | None = None
    """Recording or npz file for fp8; drawn observations where not given."""
    tokenizer: str | None = None
    """SentencePiece model; looked for beside the checkpoint where not given."""
    norm_stats: str | None = None
    """norm_stats.json; looked for in the checkpoint where not given."""


def run(args: Args) -> Run:
    """Replay, write the chunks and print how they compare.

    Raises:
        VladError: for a file or policy that cannot be used.
        OSError: where the output cannot be written.
    """
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {args.limit}")
    recording = open_recording(args.file)
    out = args.out or args.file.with_suffix(f".{args.backend}.npz")
    steps = args.num_steps if args.num_steps is not None else recording.policy.get("num_denoising_steps")
    policy = UnifiedPolicy(
        args.checkpoint,
        args.backend,
        steps,
        env=recording.robot.name,
        config=args.config,
        precision=args.precision,
        token_pruning=None if args.keep_all_tokens else recording.policy.get("token_pruning"),
        engine_dir=args.engine_dir,
        calibration=args.calibration,
        device=args.device,
        tokenizer=args.tokenizer,
        norm_stats=args.norm_stats,
    )
    seconds: list[float] = []
    try:
        policy.warm_up()
        chunks = replay(
            recording, policy, itertools.islice(recording.exchanges(), args.limit), on_chunk=seconds.append
        )
    finally:
        policy.close()
    chunks.save(out)
    p50, p99 = 1e3 * np.percentile(seconds, [50, 99])
    print(f"{len(seconds)} chunks, {p50:.1f} ms each (p50; p99 {p99:.1f} ms): {out}\n")  # noqa: T201
    print(compare(load_run(args.file), load_run(out)).table())  # noqa: T201
    return chunks


def main() -> None:
    """Entry point of `replay_requests`."""
    args = tyro.cli(Args, prog="replay_requests")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        run(args)
    except (VladError, OSError) as error:
        print(f"replay_requests: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
