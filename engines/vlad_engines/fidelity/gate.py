"""The check that stands between a loaded backend and the first robot."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vlad_configs.errors import ConfigError
from vlad_configs.fidelity import fidelity_thresholds
from vlad_engines.backends.base import Backend, BackendOptions
from vlad_engines.backends.capabilities import Attested
from vlad_engines.checkpoint.policy_checkpoint import PolicyCheckpoint
from vlad_engines.fidelity.cache import FidelityCache, check_digest
from vlad_engines.fidelity.check import check_backend
from vlad_engines.fidelity.observations import FidelityCase, fitting_observations, make_cases
from vlad_engines.fidelity.report import FidelityReport
from vlad_engines.float8.calibration import inputs_digest
from vlad_engines.processing.processor import Processor

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("vlad.fidelity")

ReportProgress = Callable[[str, float], None]

STAGE = "checking the fidelity"


@dataclasses.dataclass(frozen=True)
class LoadedPolicy:
    """What is about to serve. `backend_name` is its name in the registry."""

    checkpoint: PolicyCheckpoint
    processor: Processor
    weights: Mapping[str, torch.Tensor]
    backend: Backend
    backend_name: str
    options: BackendOptions


class UncheckableError(ConfigError):
    """There is neither a float32 reference to compare with nor the report of an earlier comparison."""


def admit(
    policy: LoadedPolicy, *, allow_low_fidelity: bool, progress: ReportProgress, cache: FidelityCache
) -> dict[str, Any]:
    """Let a policy serve, or refuse it.

    Args:
        allow_low_fidelity: let it serve below the thresholds too, with a warning.

    Returns:
        For the metadata, plain msgpack types: `FidelityReport.summary`, and `reference` (the backend is the
        reference itself, and nothing was compared), `override` (it serves although it did not pass),
        `remembered` (the figures are from an earlier start, or came with the engines).

    Raises:
        ConfigError: for a backend below the thresholds, with every one that it missed; without torch, for
            one that brings no report along.
        EngineError: where reference or backend cannot be run.
    """
    if is_reference(policy.backend_name, policy.options):
        return {"passed": True, "reference": True, "override": False, "remembered": False, "failures": []}
    try:
        report, remembered = _report(policy, progress, cache)
    except UncheckableError as error:
        if not allow_low_fidelity:
            raise
        logger.warning("serves unchecked (--allow-low-fidelity): %s", error)
        failures = [str(error)]
        return {
            "passed": False,
            "reference": False,
            "override": True,
            "remembered": False,
            "failures": failures,
        }
    if not report.passed:
        what = f"backend '{policy.backend_name}' in {policy.options.precision} is too far from float32"
        lines = "\n  ".join(report.failures)
        if not allow_low_fidelity:
            raise ConfigError(
                f"{what}:\n  {lines}\nchoose another --backend or --precision; "
                "verify_policy shows all figures, --allow-low-fidelity serves it nevertheless"
            )
        logger.warning("%s, and serves all the same (--allow-low-fidelity):\n  %s", what, lines)
    return {
        **report.summary(),
        "reference": False,
        "override": not report.passed,
        "remembered": remembered,
    }


def is_reference(backend_name: str, options: BackendOptions) -> bool:
    """Whether a backend is what others are compared with."""
    return backend_name == "pytorch" and options.precision == "fp32"


def _report(
    policy: LoadedPolicy, progress: ReportProgress, cache: FidelityCache
) -> tuple[FidelityReport, bool]:
    progress(STAGE, 0.0)
    try:
        import torch  # noqa: F401  the reference is computed with it
    except ModuleNotFoundError:
        report = _brought_along(policy)
        progress(STAGE, 1.0)
        return report, True
    contract, options = policy.checkpoint.contract, policy.options
    cases = make_cases(policy.processor, contract.model, fitting_observations(policy.processor, contract))
    digest = check_digest(
        policy.checkpoint.files,
        contract.model,
        cases,
        backend=policy.backend_name,
        options={
            **{field.name: getattr(options, field.name) for field in dataclasses.fields(options)},
            "calibration": inputs_digest(options.calibration),
        },
        components=policy.backend.describe(),
        device=options.device,
    )
    remembered = cache.find(digest)
    if remembered is not None:
        progress(STAGE, 1.0)
        return remembered, True
    report = _compare(policy, cases, progress)
    cache.keep(digest, report)
    progress(STAGE, 1.0)
    return report, False


def _brought_along(policy: LoadedPolicy) -> FidelityReport:
    report = policy.backend.attested_fidelity if isinstance(policy.backend, Attested) else None
    if report is None:
        raise UncheckableError(
            f"backend '{policy.backend_name}' cannot be compared with float32, because torch is not "
            "installed, and no report of an earlier comparison lies beside its engines: build them with "
            "build_engines from graphs that export_onnx wrote with --reference, or install torch"
        )
    # The figures came along, the verdict is today's.
    return dataclasses.replace(report, thresholds=fidelity_thresholds(report.precision))


def _compare(
    policy: LoadedPolicy, cases: tuple[FidelityCase, ...], progress: ReportProgress
) -> FidelityReport:
    from vlad_engines.fidelity.reference import compute_reference

    options = policy.options
    reference = compute_reference(
        policy.checkpoint.contract.model,
        policy.weights,
        cases,
        options.num_steps,
        options.device,
        options.pruning,
    )
    progress(STAGE, 0.7)
    report = check_backend(
        policy.backend,
        reference,
        name=policy.backend_name,
        precision=options.precision,
        batch_sizes=options.batch_sizes,
        pruned=options.pruning is not None,
    )
    logger.info("%s", report.table())
    return report
