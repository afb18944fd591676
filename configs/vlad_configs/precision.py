"""The arithmetic of a network by name: one for all of it, or one for each component."""

from __future__ import annotations

from collections.abc import Mapping

from vlad_configs.errors import ConfigError

COMPONENTS = ("vision", "prefix", "denoise")
"""The parts of the network that may compute differently."""

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8")
"""From fine to coarse. What each means, and which backends have it, is for the backends to say."""


def parse_precision(text: str) -> Mapping[str, str]:
    """Read `bf16`, or one name for each component: `vision=fp16,prefix=tf32,denoise=tf32`.

    Returns:
        Component -> name of its precision.

    Raises:
        ConfigError: for anything else.
    """
    if "=" not in text:
        named = dict.fromkeys(COMPONENTS, text)
    else:
        parts = [part.strip().partition("=") for part in text.split(",")]
        named = {name: value for name, _, value in parts}
        if sorted(named) != sorted(COMPONENTS) or len(parts) != len(COMPONENTS):
            raise ConfigError(
                f"name each of {', '.join(COMPONENTS)} once, as in vision=fp16,..., not '{text}'"
            )
    for component, name in named.items():
        if name not in PRECISIONS:
            raise ConfigError(
                f"precision of {component} must be one of {', '.join(PRECISIONS)}, not {name!r}"
                if "=" in text
                else f"precision must be one of {', '.join(PRECISIONS)}, or one for each of "
                f"{', '.join(COMPONENTS)} as in vision=fp16,..., not {text!r}"
            )
    return named


def coarsest(text: str) -> str:
    """The coarsest precision in what `parse_precision` reads; that of the others cannot show.

    Raises:
        ConfigError: see `parse_precision`.
    """
    return max(parse_precision(text).values(), key=PRECISIONS.index)
