"""Names of the tensors in a file against the names of the model, and every legal difference.

The model's names are openpi's (`vlad_engines.model.openpi_names`). A file may differ from them in
exactly these ways:

- The token table is tied to the language head; a file holds either name, or both with equal content.
- The expert's language head is never used; openpi and LeRobot write it, other writers leave it out.
- LeRobot prefixes every name with `model.`.
- LeRobot's own loader repairs files across pi0 and pi0.5 (`action_time_mlp_*` against `time_mlp_*`)
  and leaves out what the other family does not have; for its files we do the same.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from vlad_configs.models import Family
from vlad_engines.checkpoint.detect import LEROBOT_PREFIX, CheckpointFiles
from vlad_engines.checkpoint.header import TensorHeader
from vlad_engines.model.openpi_names import TIED_LM_HEAD, TOKEN_EMBEDDING, UNUSED_EXPERT_LM_HEAD

_PLAIN_EXPERT_NORM = re.compile(
    r"paligemma_with_expert\.gemma_expert\.model\.(layers\.\d+\.(input|post_attention)_layernorm|norm)\.weight"
)


@dataclasses.dataclass(frozen=True)
class TensorNames:
    """Which tensor of the file is which parameter of the model.

    Attributes:
        in_file: model name -> name in the file.
        tensors: model name -> shape and dtype.
        token_table_copy: name in the file of a second copy of the token table, to be compared with
            the first; None where there is one only.
        ignored: name in the file -> why it is legal to leave it out.
    """

    in_file: Mapping[str, str]
    tensors: Mapping[str, TensorHeader]
    token_table_copy: str | None
    ignored: Mapping[str, str]


def family_of(files: CheckpointFiles) -> tuple[Family, str]:
    """The model family of a checkpoint, and where that is written.

    An openpi file shows it by its tensors alone: only pi0.5 has `time_mlp_in`. A LeRobot file may
    carry either name, so its `config.json` decides.
    """
    if files.layout == "lerobot":
        lerobot_type: Family = files.config["type"]
        return lerobot_type, "config.json: type"
    pi05 = any(
        name == "time_mlp_in.weight" or name.endswith("input_layernorm.dense.weight")
        for name in files.header.tensors
    )
    return ("pi05", "tensors: time_mlp_in, adaRMS norms") if pi05 else ("pi0", "tensors: no time_mlp_in")


def resolve_names(files: CheckpointFiles) -> TensorNames:
    """Apply the legal differences; whatever is left unexplained is for the accounting to refuse."""
    in_file = {_without_prefix(files, name): name for name in files.header.tensors}
    ignored: dict[str, str] = {}
    token_table_copy = None
    if TIED_LM_HEAD in in_file:
        head = in_file.pop(TIED_LM_HEAD)
        if TOKEN_EMBEDDING in in_file:
            token_table_copy = head
        else:
            in_file[TOKEN_EMBEDDING] = head
    if UNUSED_EXPERT_LM_HEAD in in_file:
        ignored[in_file.pop(UNUSED_EXPERT_LM_HEAD)] = "language head of the expert, never used"
    if files.layout == "lerobot":
        _repair_lerobot(family_of(files)[0], in_file, ignored)
    tensors = {name: files.header.tensors[file_name] for name, file_name in in_file.items()}
    return TensorNames(in_file, tensors, token_table_copy, ignored)


def _without_prefix(files: CheckpointFiles, name: str) -> str:
    return name.removeprefix(LEROBOT_PREFIX) if files.layout == "lerobot" else name


def _repair_lerobot(family: Family, in_file: dict[str, str], ignored: dict[str, str]) -> None:
    ours, theirs = ("time_mlp", "action_time_mlp") if family == "pi05" else ("action_time_mlp", "time_mlp")
    for part in ("in.weight", "in.bias", "out.weight", "out.bias"):
        if f"{theirs}_{part}" in in_file and f"{ours}_{part}" not in in_file:
            in_file[f"{ours}_{part}"] = in_file.pop(f"{theirs}_{part}")
    if family != "pi05":
        return
    for name in list(in_file):
        if name in ("state_proj.weight", "state_proj.bias"):
            ignored[in_file.pop(name)] = "state projection of pi0, pi0.5 has none"
        elif _PLAIN_EXPERT_NORM.fullmatch(name):
            ignored[in_file.pop(name)] = "plain norm of the expert, pi0.5 has adaptive norms"
