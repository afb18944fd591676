"""How many image tokens the prefix keeps: LightVLA's selection with shapes that are known beforehand.

Source of the idea: arXiv 2509.12594. Off unless somebody asks for it: without fine-tuning nothing is known
about what it does to success.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from vlad_configs.errors import ConfigError

Positions = Literal["original", "compact"]
PruningMode = Literal["fixed", "union"]


def pruning_of_options(
    keep_tokens: int | None, keep_ratio: float | None, mode: PruningMode, positions: Positions
) -> TokenPruning | None:
    """What the options `--keep-tokens`, `--keep-ratio`, `--pruning-mode` and `--pruning-positions` ask for.

    Raises:
        ConfigError: for contradictions.
    """
    if keep_tokens is None and keep_ratio is None:
        if (mode, positions) != ("fixed", "original"):
            raise ConfigError("--pruning-mode and --pruning-positions need --keep-tokens or --keep-ratio")
        return None
    return TokenPruning(keep_tokens, keep_ratio, mode, positions)


@dataclasses.dataclass(frozen=True)
class TokenPruning:
    """Which image tokens stay in the prefix. All cameras share one pool.

    Exactly one of `keep_tokens` and `keep_ratio` says how much room there is.

    Attributes:
        keep_tokens: slots for image tokens; more than there are means all of them.
        keep_ratio: slots as a share of the image tokens, rounded up.
        mode: `fixed` fills every slot, most voted tokens first. `union` keeps exactly the tokens that any
            token voted for, as LightVLA does, and masks the slots that are left; where the slots do not
            suffice, the least voted tokens are dropped.
        positions: `original` leaves each token its place in the unpruned prefix; `compact` counts anew.
    """

    keep_tokens: int | None = None
    keep_ratio: float | None = None
    mode: PruningMode = "fixed"
    positions: Positions = "original"

    def __post_init__(self) -> None:
        if (self.keep_tokens is None) == (self.keep_ratio is None):
            raise ConfigError("token pruning needs either keep_tokens or keep_ratio, and not both")
        if self.keep_tokens is not None and (
            isinstance(self.keep_tokens, bool)
            or not isinstance(self.keep_tokens, int)
            or self.keep_tokens < 1
        ):
            raise ConfigError(f"keep_tokens must be an integer of at least 1, not {self.keep_tokens!r}")
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"keep_ratio must lie above 0 and be at most 1, not {self.keep_ratio!r}")
        if self.mode not in ("fixed", "union"):
            raise ConfigError(f"pruning mode must be 'fixed' or 'union', not {self.mode!r}")
        if self.positions not in ("original", "compact"):
            raise ConfigError(f"positions must be 'original' or 'compact', not {self.positions!r}")

    def slots(self, image_tokens: int) -> int:
        """Image tokens of the pruned prefix, masked ones included: K, a part of every engine's key."""
        wanted = math.ceil(self.keep_ratio * image_tokens) if self.keep_ratio else self.keep_tokens
        assert wanted is not None
        return min(wanted, image_tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenPruning:
        """Read what `to_json` wrote.

        Raises:
            ConfigError: for unknown keys and impossible values.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise ConfigError(f"unreadable token pruning: {error}") from error
