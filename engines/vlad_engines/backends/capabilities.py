"""What a backend may offer beyond `base.Backend`. Who wants it asks with `isinstance`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from vlad_configs.rtc import GuidanceMode
from vlad_engines.backends.base import InferenceResult
from vlad_engines.overlap.meter import OverlapReport
from vlad_engines.processing.model_inputs import ModelInputs
from vlad_engines.worker_protocol import ComponentEngine

if TYPE_CHECKING:
    from vlad_engines.fidelity.report import FidelityReport

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Trace:
    """What the components of a backend handed to each other in one request, as float32 in host memory.

    C real cameras, T image tokens per camera, W width of the VLM, L layers, P prefix tokens (real cameras
    first, then real prompt tokens), N steps, H action horizon, A action width.

    Attributes:
        vision_tokens: `[C*T, W]`, projector included.
        prefix_keys, prefix_values: `[L, kv_heads, P, head_dim]`, keys after RoPE in the layout of
            `model.rope`.
        x_t: `[N, H, A]`, after each Euler step; the last one is the actions.
    """

    vision_tokens: Array
    prefix_keys: Array
    prefix_values: Array
    x_t: Array


@runtime_checkable
class Traceable(Protocol):
    """A backend that can be looked into."""

    def trace(self, inputs: ModelInputs, noise: Array) -> Trace:
        """Run one request with the kernels that serve, and copy out what the components hand over.

        Args:
            noise: `[H, A]`.
        """
        ...


@runtime_checkable
class Guided(Protocol):
    """A backend that can continue earlier chunks: it obeys `ModelInputs.guidance` wherever it takes inputs.

    Backends without this attribute get no guidance.
    """

    @property
    def guidance_modes(self) -> tuple[GuidanceMode, ...]:
        """The modes it runs; `guided_identity` is always among them."""
        ...


@runtime_checkable
class Batched(Protocol):
    """A backend that runs several requests at once."""

    def infer_batch(self, inputs: Sequence[ModelInputs], noise: Sequence[Array]) -> list[InferenceResult]:
        """Compute several requests together; all have the same number of cameras.

        Args:
            noise: `[H, A]` for each request.

        Returns:
            One result per request. Each one's `stage_seconds` are those of the whole batch.

        Raises:
            EngineError: where the requests do not fit the model or each other.
        """
        ...


@runtime_checkable
class Queued(Protocol):
    """A backend that gives its device work without waiting for it."""

    def begin_batch(
        self, inputs: Sequence[ModelInputs], noise: Sequence[Array]
    ) -> Callable[[], Sequence[InferenceResult]]:
        """Begin what `Batched.infer_batch` computes, or `infer` for one request.

        Returns:
            Waits for the results. To be called once, by the thread that began, before anything else is begun.
            Where the backend is `Overlapped` too, by any thread, whatever was begun since.

        Raises:
            EngineError: where the requests do not fit the model or each other.
        """
        ...


@runtime_checkable
class FromEngineFiles(Protocol):
    """A backend whose components are files that were built for this device."""

    @property
    def engine_files(self) -> Mapping[str, ComponentEngine]:
        """By component; empty before `warm_up`."""
        ...


@runtime_checkable
class WatchesMemory(Protocol):
    """A backend that can tell how full its device is, in a process without torch too."""

    def memory_bytes(self) -> tuple[int, int]:
        """Free and total memory of the device now, whoever uses it.

        Called by the thread that calls everything else of the backend.
        """
        ...


@runtime_checkable
class Overlapped(Queued, Protocol):
    """A backend that keeps several requests in flight: `infer` is `start` and the wait for its result."""

    @property
    def overlap(self) -> OverlapReport:
        """What ran side by side so far, by the device's clock; may be read from any thread."""
        ...

    def start(self, inputs: ModelInputs, noise: Array) -> Future[InferenceResult]:
        """Enqueue a request and return; waits for a free place where all are taken.

        Called from one thread, the one that also calls everything else of the backend. The future may be
        waited for in any. Requests finish in the order in which they start.

        Args:
            noise: `[H, A]`.

        Raises:
            EngineError: for inputs that do not fit the model, or after `close`.
        """
        ...


@runtime_checkable
class Attested(Protocol):
    """A backend whose engines may bring along how close to float32 they were found to be."""

    @property
    def attested_fidelity(self) -> FidelityReport | None:
        """The report on exactly these engines; None where there is none. Asked for after `warm_up`."""
        ...


@runtime_checkable
class Counted(Protocol):
    """A backend that counts what it runs."""

    @property
    def calls(self) -> Mapping[str, int]:
        """Component -> how often it ran so far, preparations not counted; may be read from any thread."""
        ...
