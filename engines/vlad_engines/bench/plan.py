"""What a run of `bench_policy` measures, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
from typing import Literal

from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.errors import ConfigError
from vlad_configs.pruning import Positions, PruningMode, TokenPruning
from vlad_engines.backends.choice import BackendChoice
from vlad_engines.bench.case import RequestShape
from vlad_engines.checkpoint.random_checkpoint import RANDOM_PREFIX, random_model

Mode = Literal["engine", "policy", "loopback"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything measured is a combination of these.

    Attributes:
        checkpoints: `random:...` or directories.
        environment: robot, a name of `ENVIRONMENTS`.
        shape: of a request; in the modes policy and loopback the robot says how many cameras there are.
        prunings: what the prefix keeps, one after the other; None for all image tokens.
        chunk: action horizon for random weights in mode engine; None for the model's own.
        batches: sizes in mode engine; the other modes answer one request at a time.
    """

    modes: tuple[Mode, ...]
    checkpoints: tuple[str, ...]
    environment: str
    backends: tuple[BackendChoice, ...]
    prunings: tuple[TokenPruning | None, ...]
    device: str
    shape: RequestShape
    chunk: int | None
    steps: int
    batches: tuple[int, ...]
    warm_up: int
    repetitions: int

    def __post_init__(self) -> None:
        if self.environment not in ENVIRONMENTS:
            raise ConfigError(
                f"unknown environment '{self.environment}'; known: {', '.join(sorted(ENVIRONMENTS))}"
            )
        for checkpoint in self.checkpoints:
            if checkpoint.startswith(RANDOM_PREFIX):
                random_model(checkpoint.removeprefix(RANDOM_PREFIX))
            elif self.chunk is not None:
                raise ConfigError("--chunk goes with --random-weights; a checkpoint has its own horizon")
        if self.modes != ("engine",):
            if self.chunk is not None:
                raise ConfigError("--chunk goes with --mode engine; the robot decides in the other modes")
            if self.batches != (1,):
                raise ConfigError("--batch goes with --mode engine; the other modes answer single requests")
        for name, least in (("chunk", 1), ("steps", 1), ("warm_up", 0), ("repetitions", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}, not {value}")


def parse_prunings(text: str, mode: PruningMode, positions: Positions) -> tuple[TokenPruning | None, ...]:
    """Read `all,64,24`: numbers of image tokens, or all of them without any pruning.

    Raises:
        ConfigError: for anything else, and for a mode or positions without any number.
    """
    kept = parse_names(text)
    wrong = [name for name in kept if name != "all" and not (name.isdecimal() and int(name))]
    if wrong:
        raise ConfigError(
            f"--keep-tokens takes 'all' and numbers of 1 and more, such as all,64, not '{text}'"
        )
    if set(kept) == {"all"} and (mode, positions) != ("fixed", "original"):
        raise ConfigError("--pruning-mode and --pruning-positions need a number in --keep-tokens")
    return tuple(
        None if name == "all" else TokenPruning(int(name), mode=mode, positions=positions) for name in kept
    )


def parse_names(text: str) -> tuple[str, ...]:
    """Read `a,b,c`.

    Raises:
        ConfigError: for an empty name.
    """
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise ConfigError(f"names are separated by single commas, not '{text}'")
    return names
