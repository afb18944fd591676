"""How fast a network from scratch learns to read the robot's state out of its prompt, by tokenizer.

    python -m benchmarks.state_readout --steps 100

Trains the small policy's prefix and action expert, without pictures, to repeat the eight normalised numbers
of a random state. Mean square errors are of 25 steps each; 0.33 is knowing nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.resources
import pathlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from vlad_configs.training import train_config
from vlad_engines.model.pi0 import Prefix
from vlad_engines.processing.tokenizer import SentencePieceTokenizer, encode_prompt
from vlad_training.initial_weights import scratch_weights, trainable_network
from vlad_training.task import number_tokens

PROMPT = "pick up the black bowl on the stove and place it on the plate"
WIDTH, BATCH, EVERY = 8, 32, 25
# Package, file, pieces, longest prompt, and whether numbers begin in order.
VARIANTS: Mapping[str, tuple[str, str, int, int, bool]] = {
    "digits": ("vlad_engines.checkpoint", "demo_data/tokenizer.model", 512, 80, False),
    "numbers": ("vlad_training", "data/libero_tokenizer.model", 768, 48, False),
    "numbers in order": ("vlad_training", "data/libero_tokenizer.model", 768, 48, True),
}


def errors(variant: str, steps: int) -> list[float]:
    """Mean square error of every step."""
    package, file, vocabulary, longest, ordered = VARIANTS[variant]
    small = train_config("pi05_libero_small").model
    config = dataclasses.replace(small, vocab_size=vocabulary, max_token_len=longest)
    path = pathlib.Path(str(importlib.resources.files(package) / file))
    tokenizer = SentencePieceTokenizer(path, vocabulary)
    weights = scratch_weights(config, 0, number_tokens(tokenizer) if ordered else ())
    model = trainable_network(config, weights, torch.device("cpu"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3, betas=(0.9, 0.95))
    random = np.random.default_rng(0)
    made = []
    for step in range(steps):
        states = random.uniform(-1, 1, (BATCH, WIDTH))
        prompts = [encode_prompt(tokenizer, "task_state_action", PROMPT, state) for state in states]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
        prefix = Prefix(model.embed_prompt(tokens), lengths)
        cache = model.compute_prefix_kv_cache(prefix)
        conditioning = model.as_conditioning(model.time_conditioning(torch.ones(BATCH)))
        nothing = torch.zeros(BATCH, config.action_horizon, config.action_dim)
        suffix = model.place_suffix(tokens.shape[1], lengths)
        answer = model.denoise_step_with_cache(nothing, conditioning, nothing[:, 0], cache, suffix)
        error = (answer[:, 0, :WIDTH] - torch.from_numpy(states).float()).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 30)
        optimizer.zero_grad()
        torch.autograd.backward(error)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        made.append(error.item())
    return made


def main() -> None:
    """Print the errors of each variant."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for variant in options.variants:
        made = errors(variant, options.steps)
        means = [np.mean(made[start : start + EVERY]) for start in range(0, len(made), EVERY)]
        print(f"{variant:>16}: " + "  ".join(f"{mean:.3f}" for mean in means), flush=True)


if __name__ == "__main__":
    main()
