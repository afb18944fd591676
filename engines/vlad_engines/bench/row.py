"""One measurement, as it stands in a results file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STAGES = ("vision", "prefix", "denoise")


@dataclasses.dataclass(frozen=True)
class Samples:
    """What every repetition took, in seconds.

    Attributes:
        stages: stage -> one number per repetition, measured on the device by events. The stages of one
            request follow each other without a gap, so that their sum is the device time of the request.
        wall: one number per repetition on the host's clock, from the call to the actions in host memory.
        elapsed: from the start of the first repetition to the end of the last.
        requests: answered in `elapsed`.
        path: part of the wall time -> one number per repetition, see `request_path`; None where unknown.
    """

    stages: Mapping[str, Sequence[float]]
    wall: Sequence[float]
    elapsed: float
    requests: int
    path: Mapping[str, Sequence[float]] | None = None


@dataclasses.dataclass(frozen=True)
class BenchRow:
    """A row of a results file. Times are milliseconds; single numbers are medians.

    Attributes:
        gpu: name of the device; `cpu` where there is none, whose times then stand under the same keys.
        mode: `engine` (backend alone), `policy` (with processing) or `loopback` (daemon and websocket).
        model: `pi05` or `pi0`, with `_dummy` for the tiny ones.
        memory_gib: device memory in use right after the measurement, CUDA context and all; None on a CPU.
        start_s: from nothing to ready. Engine and policy: in a process that has loaded its libraries.
        pruning: which image tokens the prefix kept, as in the metadata; None for all.
        speedup: device time of the first backend of the same run divided by this one's.
        floor_ms: lower bound by stage, see `roofline`; None for a device whose peaks are unknown.
        path_ms: where the wall time went, see `request_path`; None for other modes than `loopback`, and
            where the server did not tell.
    """

    gpu: str
    mode: str
    model: str
    cameras: int
    prompt_tokens: int
    chunk: int
    steps: int
    batch: int
    backend: str
    precision: str
    gpu_ms: Mapping[str, float]
    stages_ms: Mapping[str, float]
    wall_ms: float
    wall_ms_percentiles: Mapping[str, float]
    requests_per_s: float
    memory_gib: float | None
    start_s: float
    repetitions: int
    commit: str
    command: str
    floor_ms: Mapping[str, float] | None = None
    speedup: float | None = None
    pruning: Mapping[str, Any] | None = None
    path_ms: Mapping[str, float] | None = None

    @property
    def case(self) -> tuple[object, ...]:
        """What rows of different backends and prunings must share to be compared."""
        return (
            self.gpu,
            self.mode,
            self.model,
            self.cameras,
            self.prompt_tokens,
            self.chunk,
            self.steps,
            self.batch,
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BenchRow:
        """Read what `to_json` wrote.

        Raises:
            TypeError: for unknown or missing keys.
        """
        return cls(**data)


def measured(samples: Samples) -> dict[str, Any]:
    """The fields of a row that follow from its samples."""
    device = np.sum([samples.stages[stage] for stage in STAGES], axis=0)
    path_ms = None
    if samples.path is not None:
        path_ms = {part: _ms(np.median(seconds)) for part, seconds in samples.path.items()}
    return {
        "gpu_ms": percentiles_ms(device),
        "stages_ms": {stage: _ms(np.median(samples.stages[stage])) for stage in STAGES},
        "wall_ms": _ms(np.median(samples.wall)),
        "wall_ms_percentiles": percentiles_ms(samples.wall),
        "requests_per_s": round(samples.requests / samples.elapsed, 2),
        "repetitions": len(samples.wall),
        "path_ms": path_ms,
    }


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds."""
    p50, p90, p99 = np.percentile(np.asarray(seconds), [50, 90, 99])
    return {"p50": _ms(p50), "p90": _ms(p90), "p99": _ms(p99)}


def with_speedups(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """Hold every row against the first one of its case."""
    first: dict[tuple[object, ...], BenchRow] = {}
    result = []
    for row in rows:
        base = first.setdefault(row.case, row)
        result.append(dataclasses.replace(row, speedup=round(base.gpu_ms["p50"] / row.gpu_ms["p50"], 3)))
    return result


def _ms(seconds: float | np.floating[Any]) -> float:
    return round(float(seconds) * 1e3, 4)
