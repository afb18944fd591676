"""The network of a checkpoint and nothing else of it: no tokenizer, no statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from vlad_configs.contract import Contract
from vlad_engines.checkpoint.accounting import account_for_tensors
from vlad_engines.checkpoint.contract import derive_contract
from vlad_engines.checkpoint.loader import LazyWeights
from vlad_engines.checkpoint.policy_checkpoint import checkpoint_files
from vlad_engines.checkpoint.random_checkpoint import is_random
from vlad_engines.checkpoint.random_weights import RandomWeights
from vlad_engines.checkpoint.tensor_names import resolve_names


def open_network(
    checkpoint: str, environment: str | None, config: str | None, device: str
) -> tuple[Contract, Mapping[str, torch.Tensor]]:
    """The contract and the weights by their openpi names, each read when it is asked for.

    Args:
        checkpoint, environment, config: as for `open_policy_checkpoint`.
        device: where random weights are drawn.

    Raises:
        CheckpointError, ConfigError: as `open_policy_checkpoint` does.
    """
    files = checkpoint_files(checkpoint, environment, config)
    names = resolve_names(files)
    contract, _ = derive_contract(files, names, environment, config)
    account_for_tensors(files, names, contract.model)
    if is_random(files.path):
        return contract, RandomWeights(contract.model, device)
    return contract, LazyWeights(files, names)
