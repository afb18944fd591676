"""How a command line names backends, their arithmetic, and batch sizes."""

from __future__ import annotations

import dataclasses

from vlad_configs.errors import ConfigError
from vlad_engines.backends.registry import check_backend


@dataclasses.dataclass(frozen=True)
class BackendChoice:
    """A backend and its precision; written `triton` or `triton:fp8`."""

    name: str
    precision: str

    def __str__(self) -> str:
        return f"{self.name}:{self.precision}"


def parse_choices(text: str, default_precision: str) -> tuple[BackendChoice, ...]:
    """Read `NAME` or `NAME:PRECISION`, several with commas.

    Raises:
        ConfigError: for anything else, and for backends that this version does not have.
    """
    choices = []
    for part in text.split(","):
        name, colon, precision = part.strip().partition(":")
        if not name or (colon and not precision):
            raise ConfigError(f"a backend is written NAME or NAME:PRECISION, not '{part}'")
        check_backend(name)
        choices.append(BackendChoice(name, precision or default_precision))
    return tuple(choices)


def parse_batches(text: str) -> tuple[int, ...]:
    """Read `1,2,4`.

    Raises:
        ConfigError: for anything but positive integers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--batch takes sizes of 1 and more, such as 1,2,4, not '{text}'")
    return tuple(int(part) for part in parts)
