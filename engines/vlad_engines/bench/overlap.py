"""What overlap gains, and what it costs a lone request: a `_pipelined` backend beside its sequential twin.

`python -m vlad_engines.bench.overlap --backend triton_pipelined --twin triton`
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys

import tyro

from vlad_configs.errors import VladError
from vlad_engines.backends.base import BackendOptions
from vlad_engines.backends.registry import create_backend
from vlad_engines.bench.case import RequestShape, model_inputs, noise
from vlad_engines.bench.device import device_name, software
from vlad_engines.bench.in_flight import OverlapRow, measure
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure the overlapped schedule."""

    checkpoint: str = "random:pi05"
    """Checkpoint, or random weights."""
    env: str = "LIBERO"
    """Robot, which decides about the horizon."""
    backend: str = "triton_pipelined"
    """The overlapped one."""
    twin: str = "triton"
    """The sequential one that it is compared with."""
    device: str = "cuda"
    """Torch device."""
    precision: str = "bf16"
    """Arithmetic of both."""
    cameras: int = 2
    """Real cameras of a request."""
    prompt_tokens: int = 20
    """Real prompt tokens of a request."""
    num_steps: int = 10
    """Denoising steps."""
    in_flight: tuple[int, ...] = (1, 2, 3)
    """Requests that are kept in flight."""
    requests: int = 300
    """Measured requests for each of these numbers."""
    warm_up: int = 30
    """Requests before them."""


def run(args: Args) -> list[OverlapRow]:
    """Measure the twin, then the overlapped backend.

    Raises:
        VladError: for options that cannot work, or an engine that fails.
    """
    checkpoint = open_policy_checkpoint(args.checkpoint, environment=args.env)
    model = checkpoint.contract.model
    shape = RequestShape(args.cameras, args.prompt_tokens)
    starts = noise(model, 8)
    requests = [(model_inputs(model, shape, seed), start) for seed, start in enumerate(starts)]
    options = BackendOptions(
        args.num_steps,
        args.precision,
        args.device,
        camera_counts=(args.cameras,),
    )
    rows: list[OverlapRow] = []
    for name, numbers in ((args.twin, (1,)), (args.backend, args.in_flight)):
        backend = create_backend(name, model, open_weights(checkpoint, args.device), options)
        try:
            expected = [backend.infer(*request).actions.tobytes() for request in requests]
            for in_flight in numbers:
                measure(name, backend, requests, expected, args.warm_up, in_flight)
                rows.append(measure(name, backend, requests, expected, args.requests, in_flight))
        finally:
            backend.close()
    return rows


def main() -> None:
    """Entry point; exits with 1 where a chunk was not that of a lone request."""
    args = tyro.cli(Args)
    try:
        rows = run(args)
    except VladError as error:
        sys.exit(f"error: {error}")
    command = shlex.join([sys.executable, "-m", "vlad_engines.bench.overlap", *sys.argv[1:]])
    head = {"command": command, "device": device_name(args.device), **software()}
    lines = [json.dumps(head), *(json.dumps(dataclasses.asdict(row)) for row in rows)]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.exit(0 if all(row.same_chunks for row in rows) else 1)


if __name__ == "__main__":
    main()
