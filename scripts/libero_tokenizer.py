"""Makes the tokenizer of `pi05_libero_small`, whose numbers and LIBERO words are one token each.

    python scripts/libero_tokenizer.py training/vlad_training/data/libero_tokenizer.model

Needs hf-libero for the instructions, see docs/libero.md. Conventions are Gemma's: byte fallback, pad 0,
end 1, begin 2, newline one piece. A whole number has a token of its own, unlike in Gemma's: a network that
never read a text then need not learn place values to know where its hand is, and prompts are shorter.
"""

from __future__ import annotations

import argparse
import io
import pathlib
import sys

import sentencepiece

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "clients"))

from vlad_libero.simulator.suites import suite_tasks  # noqa: E402

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
# Bins of the state, and what lies below the first one.
NUMBERS = range(-1, 256)
VOCABULARY = 768


def main() -> int:
    """Write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=pathlib.Path)
    file: pathlib.Path = parser.parse_args().file
    prompts = sorted({task.prompt for suite in SUITES for task in suite_tasks(suite)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"Task: {prompt}, State:;\nAction: " for prompt in prompts]),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        user_defined_symbols=["\n", *(f"\u2581{number}" for number in NUMBERS)],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(model.getvalue())
    print(f"{file}: {len(model.getvalue())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
