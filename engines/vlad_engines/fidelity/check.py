"""Holds a backend against the reference: what it hands from part to part, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vlad_configs.errors import EngineError
from vlad_configs.fidelity import FidelityThresholds, fidelity_thresholds
from vlad_engines.backends.base import Backend
from vlad_engines.backends.capabilities import Batched, Trace, Traceable
from vlad_engines.fidelity.metrics import ActionErrors, Similarity, action_errors, action_scale, similarity
from vlad_engines.fidelity.report import BATCH, DISPLACEMENT, FINAL, FidelityReport
from vlad_engines.fidelity.stored_reference import Reference
from vlad_engines.model.euler import euler_schedule

Array = npt.NDArray[np.float32]

_PREFIX = ("prefix_keys", "prefix_values")


def check_backend(
    backend: Backend,
    reference: Reference,
    *,
    name: str,
    precision: str,
    batch_sizes: Sequence[int] = (1,),
    thresholds: FidelityThresholds | None = None,
    pruned: bool = False,
) -> FidelityReport:
    """Run all cases of the reference through a backend and compare.

    The verdict on the actions is always about what `infer` returns, which is what a robot gets; a trace
    only adds what lies before.

    Args:
        name: of the backend, for the report.
        precision: selects the thresholds.
        batch_sizes: also check batches of these sizes, where the backend runs batches.
        thresholds: instead of those of `precision`.
        pruned: image tokens are left out. Keys and values of the prefix are not compared then: of two tokens
            that are about equally good, rounding may keep the other one, and rows no longer belong together.

    Raises:
        ConfigError: for a precision without thresholds.
        EngineError: where the backend fails, or returns arrays of another shape.
    """
    limits = fidelity_thresholds(precision) if thresholds is None else thresholds
    cases = reference.cases
    noise = [case.noise for case in cases]
    expected = np.stack([trace.x_t[-1] for trace in reference.traces])
    returned = np.stack([backend.infer(case.inputs, case.noise).actions for case in cases])
    scale = action_scale(expected)
    components: dict[str, Similarity] = {}
    actions: dict[str, ActionErrors] = {}
    traced = isinstance(backend, Traceable)
    if isinstance(backend, Traceable):
        traces = [backend.trace(case.inputs, case.noise) for case in cases]
        components.update(_compare_components(traces, reference, noise, () if pruned else _PREFIX))
        for step in range(reference.num_steps):
            actions[str(step + 1)] = action_errors(
                _after_step(traces, step), _after_step(reference.traces, step), scale
            )
    components[DISPLACEMENT] = similarity(
        [(chunk - start)[None] for chunk, start in zip(returned, noise, strict=True)],
        [(chunk - start)[None] for chunk, start in zip(expected, noise, strict=True)],
    )
    actions[FINAL] = action_errors(returned, expected, scale)
    if isinstance(backend, Batched):
        for size in batch_sizes:
            if size > 1:
                actions[f"{BATCH}{size}"] = _check_batch(backend, reference, size, scale)
    return FidelityReport(
        backend=name,
        precision=precision,
        num_steps=reference.num_steps,
        observations=len(cases),
        traced=traced,
        components=components,
        actions=actions,
        thresholds=limits,
    )


def _check_batch(
    backend: Batched, reference: Reference, size: int, scale: npt.NDArray[np.float64]
) -> ActionErrors:
    """Fill a batch with cases that have the same number of cameras, over and over where they are few."""
    by_cameras: dict[int, list[int]] = {}
    for index, case in enumerate(reference.cases):
        by_cameras.setdefault(len(case.inputs.cameras), []).append(index)
    largest = max(by_cameras.values(), key=len)
    chosen = [largest[sample % len(largest)] for sample in range(size)]
    cases = [reference.cases[index] for index in chosen]
    results = backend.infer_batch([case.inputs for case in cases], [case.noise for case in cases])
    expected = np.stack([reference.traces[index].x_t[-1] for index in chosen])
    return action_errors(np.stack([result.actions for result in results]), expected, scale)


def _compare_components(
    traces: Sequence[Trace], reference: Reference, noise: Sequence[Array], prefix: Sequence[str]
) -> dict[str, Similarity]:
    steps = len(euler_schedule(reference.num_steps).times)
    for trace in traces:
        if len(trace.x_t) != steps:
            raise EngineError(f"the backend traced {len(trace.x_t)} steps, the reference {steps}")
    compared = {
        "vision_tokens": similarity(
            [trace.vision_tokens[None] for trace in traces],
            [trace.vision_tokens[None] for trace in reference.traces],
        )
    }
    for name in prefix:
        compared[name] = similarity(
            [getattr(trace, name) for trace in traces], [getattr(trace, name) for trace in reference.traces]
        )
    compared["velocity"] = similarity(
        [_velocities(trace, start) for trace, start in zip(traces, noise, strict=True)],
        [_velocities(trace, start) for trace, start in zip(reference.traces, noise, strict=True)],
    )
    return compared


def _velocities(trace: Trace, noise: Array) -> Array:
    """What each step added, `[N, H, A]`. A common factor does not matter to a cosine, but to max abs."""
    steps = np.diff(np.concatenate((noise[None], trace.x_t)), axis=0)
    return steps / np.float32(euler_schedule(len(trace.x_t)).step)


def _after_step(traces: Sequence[Trace], step: int) -> Array:
    return np.stack([trace.x_t[step] for trace in traces])
