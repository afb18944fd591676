"""Complete key accounting: every tensor of the model in the file, every tensor of the file in the model."""

from __future__ import annotations

from collections.abc import Sequence

from vlad_configs.errors import CheckpointError
from vlad_configs.models import ModelConfig
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.header import FLOAT_DTYPES
from vlad_engines.checkpoint.tensor_names import TensorNames
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING, expected_tensors


def account_for_tensors(files: CheckpointFiles, names: TensorNames, model: ModelConfig) -> None:
    """Hold the file against the model.

    Raises:
        CheckpointError: lists every missing, unexpected and mis-shaped tensor, grouped.
    """
    expected = expected_tensors(model)
    missing = [
        f"{name} {list(shape)}" + (f" (or {TIED_LM_HEAD})" if name == TOKEN_EMBEDDING else "")
        for name, shape in expected.items()
        if name not in names.tensors
    ]
    unexpected = [names.in_file[name] for name in names.tensors if name not in expected]
    wrong = []
    for name, shape in expected.items():
        tensor = names.tensors.get(name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            wrong.append(f"{names.in_file[name]}: expected {list(shape)}, found {list(tensor.shape)}")
        elif tensor.dtype not in FLOAT_DTYPES:
            wrong.append(f"{names.in_file[name]}: expected a float dtype, found {tensor.dtype}")
    copy = names.token_table_copy
    if copy is not None and files.header.tensors[copy] != names.tensors[TOKEN_EMBEDDING]:
        wrong.append(f"{copy}: differs in shape or dtype from its twin {names.in_file[TOKEN_EMBEDDING]}")
    if not (missing or unexpected or wrong):
        return
    groups = (
        ("missing", sorted(missing)),
        ("unexpected", sorted(unexpected)),
        ("of another shape or dtype", sorted(wrong)),
    )
    counts = ", ".join(f"{len(entries)} {title}" for title, entries in groups if entries)
    raise CheckpointError(
        f"{files.header.path} does not fit the {model.family} model: {counts}{_hint(unexpected)}"
        + "".join(_listing(title, entries) for title, entries in groups if entries)
    )


def _listing(title: str, entries: Sequence[str]) -> str:
    return f"\n{title}:\n  " + "\n  ".join(entries)


def _hint(unexpected: Sequence[str]) -> str:
    if any("lora" in name for name in unexpected):
        return "; the file holds unmerged LoRA weights: merge them into the base weights first"
    if any("proprio_history" in name for name in unexpected):
        return "; this is a memory variant of pi0.5, which is not supported"
    return ""
