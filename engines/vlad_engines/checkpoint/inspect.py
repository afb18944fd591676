"""The command `inspect_checkpoint`: what a checkpoint is, what a policy made of it expects, what is wrong.

Reads headers and small files only, never the weights, and imports no torch.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import tyro

from vlad_configs.contract import Contract
from vlad_configs.errors import VladError
from vlad_engines.checkpoint.accounting import account_for_tensors
from vlad_engines.checkpoint.contract import contract_warnings, derive_contract
from vlad_engines.checkpoint.contract_openpi import NamedConfig
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.norm_stats import stats_warnings
from vlad_engines.checkpoint.policy_checkpoint import (
    checkpoint_files,
    checkpoint_norm_stats,
    checkpoint_tokenizer,
)
from vlad_engines.checkpoint.report import format_report
from vlad_engines.checkpoint.tensor_names import TensorNames, resolve_names
from vlad_engines.processing.normalization import FeatureStats, NormStats
from vlad_engines.processing.tokenizer import SentencePieceTokenizer

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Args:
    """Show the contract of a checkpoint, where each part of it comes from, and what is wrong with it."""

    path: Annotated[str, tyro.conf.Positional]
    """Checkpoint directory, openpi PyTorch or LeRobot; or `demo`, or `random:pi05` and its kin."""
    env: str | None = None
    """Robot: LIBERO, DROID, ALOHA or ALOHA_SIM; the configuration's, or else LIBERO, where not given."""
    config: str | None = None
    """openpi configuration name, such as pi05_libero."""
    tokenizer: str | None = None
    """SentencePiece model to use instead of the one found."""
    norm_stats: str | None = None
    """norm_stats.json to use instead of the checkpoint's."""
    json: bool = False
    """Print one JSON object instead of text."""


def inspect_checkpoint(args: Args) -> dict[str, Any]:
    """Collect the report; problems are listed in it instead of raised.

    Returns:
        Plain JSON types. `problems` is empty where the checkpoint can be served.
    """
    problems: list[str] = []

    def attempt(step: Callable[[], T]) -> T | None:
        try:
            return step()
        except VladError as error:
            problems.append(str(error))
            return None

    report: dict[str, Any] = {"checkpoint": args.path, "problems": problems, "warnings": []}
    files = attempt(lambda: checkpoint_files(args.path, args.env, args.config))
    if files is None:
        return report
    names = resolve_names(files)
    report["files"] = _files(files, names)
    report["warnings"] += contract_warnings(files)
    derived = attempt(lambda: derive_contract(files, names, args.env, args.config))
    tokenizer = attempt(lambda: checkpoint_tokenizer(files, args.tokenizer))
    report["tokenizer"] = None if tokenizer is None else str(tokenizer)
    if derived is None:
        return report
    contract, named = derived
    report["contract"] = _contract(contract, named)
    attempt(lambda: account_for_tensors(files, names, contract.model))
    if tokenizer is not None:
        attempt(lambda: SentencePieceTokenizer(tokenizer, contract.model.vocab_size))
    asset_id = None if named is None else named.config.asset_id
    loaded = attempt(lambda: checkpoint_norm_stats(files, contract, asset_id, args.norm_stats))
    if loaded is not None:
        report["norm_stats"] = _norm_stats(*loaded)
        report["warnings"] += stats_warnings(contract, loaded[0])
    return report


def _files(files: CheckpointFiles, names: TensorNames) -> dict[str, Any]:
    return {
        "directory": str(files.path),
        "layout": files.layout,
        "weights": "random" if files.random_weights else "checkpoint",
        "weights_bytes": files.header.file_bytes,
        "tensors": len(files.header.tensors),
        "parameters": sum(tensor.elements for tensor in names.tensors.values()),
        "dtypes": dict(Counter(tensor.dtype for tensor in files.header.tensors.values())),
        "left_out": dict(names.ignored),
    }


def _contract(contract: Contract, named: NamedConfig | None) -> dict[str, Any]:
    robot, model = contract.environment, contract.model
    fields: dict[str, Any] = {
        "layout": contract.layout,
        "family": model.family,
        "config": None if named is None else named.name,
        "environment": robot.name,
        "cameras": [camera.key for camera in robot.cameras if camera.slot is not None],
        "state_width": robot.state_width,
        "action_width": robot.action_width,
        "conversion": robot.conversion,
        "action_horizon": model.action_horizon,
        "action_dim": model.action_dim,
        "max_token_len": model.max_token_len,
        "num_denoising_steps": contract.num_denoising_steps,
        "prompt_template": contract.prompt_template,
        "prompt_state_dims": contract.prompt_state_dims,
        "norm_kind": dict(contract.norm_kind),
        "norm_formula": contract.norm_formula,
        "delta_mask": None if contract.delta_mask is None else list(contract.delta_mask),
        "image_resize": contract.image_resize,
        "trained_max_delay": contract.trained_max_delay,
        "default_prompt": contract.default_prompt,
        "metadata": dict(contract.metadata),
        "model": model.to_json(),
    }
    sources = {"config": "" if named is None else named.source, **contract.sources}
    return {name: {"value": value, "source": sources.get(name, "")} for name, value in fields.items()}


def _norm_stats(stats: NormStats, source: str) -> dict[str, Any]:
    return {"source": source, "state": _ranges(stats.state), "actions": _ranges(stats.actions)}


def _ranges(stats: FeatureStats) -> dict[str, Any]:
    values = {name: getattr(stats, name).tolist() for name in stats.present}
    return {"width": stats.width, **values}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command; exits with 1 where the checkpoint cannot be served."""
    args = tyro.cli(Args, args=arguments)
    report = inspect_checkpoint(args)
    text = json.dumps(report, indent=2) if args.json else format_report(report)
    sys.stdout.write(text + "\n")
    sys.exit(1 if report["problems"] else 0)
