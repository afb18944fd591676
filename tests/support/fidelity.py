"""A tiny network, its float32 reference, and backends over deliberately broken copies of it."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch

from vlad_configs.models import ModelConfig
from vlad_engines.backends.base import BackendOptions, InferenceResult
from vlad_engines.backends.pytorch.backend import PytorchBackend
from vlad_engines.checkpoint.open_weights import open_weights
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint, open_policy_checkpoint
from vlad_engines.fidelity.observations import make_cases, synthetic_observations
from vlad_engines.fidelity.reference import Reference, compute_reference
from vlad_engines.fidelity.verify import make_processor
from vlad_engines.model.pi0 import Pi0
from vlad_engines.model.precision import Precision
from vlad_engines.processing.model_inputs import ModelInputs

STEPS = 3


@functools.cache
def checkpoint(family: str, environment: str = "LIBERO") -> PolicyCheckpoint:
    """The tiny network of a family, for a robot."""
    return open_policy_checkpoint(f"random:{family}_dummy", environment=environment)


@functools.cache
def reference(family: str, environment: str = "LIBERO", observations: int = 1) -> Reference:
    """What float32 computes for it."""
    opened = checkpoint(family, environment)
    requests = synthetic_observations(opened.contract.environment, observations)
    cases = make_cases(make_processor(opened), opened.contract.model, requests)
    return compute_reference(opened.contract.model, open_weights(opened, "cpu"), cases, STEPS, "cpu")


def network(family: str, precision: Precision) -> Pi0:
    """A copy of the tiny network, to be broken."""
    opened = checkpoint(family)
    return Pi0.from_openpi_weights(opened.contract.model, open_weights(opened, "cpu"), precision)


def backend(model: Pi0, precision: Precision) -> PytorchBackend:
    """The PyTorch backend over any network."""
    return PytorchBackend(model, BackendOptions(STEPS, precision, "cpu"), torch.device("cpu"))


class WithoutTrace:
    """A backend that lets nobody look into it."""

    def __init__(self, backend: PytorchBackend) -> None:
        self._backend = backend

    def infer(self, inputs: ModelInputs, noise: npt.NDArray[np.float32]) -> InferenceResult:
        return self._backend.infer(inputs, noise)

    def warm_up(self, progress: object) -> None:
        pass

    def describe(self) -> dict[str, object]:
        return self._backend.describe()

    def close(self) -> None:
        self._backend.close()


def tiny_model(family: str) -> ModelConfig:
    """The shapes of the tiny network."""
    return checkpoint(family).contract.model
