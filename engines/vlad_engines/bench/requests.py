"""Robot requests of a given prompt length, for the modes that include the processing."""

from __future__ import annotations

from typing import Any

from vlad_configs.environments import Environment
from vlad_configs.errors import ConfigError
from vlad_engines.bench.case import RequestShape
from vlad_engines.fidelity.observations import synthetic_observations
from vlad_engines.processing.processor import Processor

_MOST_FILLER = 1024


def observation_of(
    processor: Processor, environment: Environment, prompt_tokens: int
) -> tuple[dict[str, Any], RequestShape]:
    """A request whose prompt becomes exactly `prompt_tokens` tokens, and its shape.

    The prompt ends in digits, which tokenizers of the Gemma kind split one by one.

    Raises:
        ConfigError: where no such prompt exists, such as for fewer tokens than the template itself has.
    """
    observation = dict(synthetic_observations(environment, 1)[0])
    least = 0
    for filler in range(_MOST_FILLER):
        observation["prompt"] = "go " + "7" * filler
        inputs = processor.prepare(observation)
        tokens = int(inputs.token_mask.sum())
        least = least or tokens
        if tokens == prompt_tokens:
            return observation, RequestShape(len(inputs.cameras), tokens)
        if tokens > prompt_tokens or bool(inputs.token_mask.all()):
            break
    raise ConfigError(
        f"no prompt of {environment.name} becomes {prompt_tokens} tokens: the shortest one has {least}, "
        f"the longest {len(inputs.tokens)}; choose another --prompt-tokens"
    )
