"""Puts a trained policy into the package, as what `--checkpoint demo` serves.

    python scripts/embed_demo_policy.py CHECKPOINT docs/results/DATE-DEVICE-success.json

Takes the policy's own files only, no state of its training, and refuses one that was not evaluated: the table
of `scripts/libero_table.py` has to be of these very weights. Writes the list of checksums and a README.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("engines", "configs", "server")]

from vlad_configs.errors import CheckpointError, VladError  # noqa: E402
from vlad_engines.checkpoint.detect import CONFIG_FILE, WEIGHTS_FILE  # noqa: E402
from vlad_engines.checkpoint.embedded_policy import (  # noqa: E402
    CHECKSUMS_FILE,
    LARGEST_BYTES,
    checksums,
    embedded_directory,
)
from vlad_engines.checkpoint.norm_stats import NORM_STATS_FILE  # noqa: E402
from vlad_engines.checkpoint.policy_checkpoint import open_policy_checkpoint  # noqa: E402
from vlad_engines.checkpoint.tokenizer_file import TOKENIZER_NAMES  # noqa: E402

REFERENCE = "reference"


def main(arguments: list[str] | None = None) -> int:
    """Put the policy there; 0 where it was done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("table", type=pathlib.Path)
    parser.add_argument("--into", type=pathlib.Path, default=embedded_directory(), help="(the package)")
    options = parser.parse_args(arguments)
    try:
        embed(options.checkpoint, options.table, options.into)
    except VladError as error:
        print(f"embed_demo_policy: {error}", file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in options.into.rglob("*") if file.is_file())
    print(f"embed_demo_policy: {options.into}, {size / 2**20:.1f} MiB")
    return 0


def embed(checkpoint: pathlib.Path, table: pathlib.Path, into: pathlib.Path) -> None:
    """Copy a policy and what is known of it.

    Raises:
        CheckpointError: for a policy that cannot be served, is too large or random, or was not evaluated.
    """
    opened = open_policy_checkpoint(checkpoint)
    if opened.files.random_weights:
        raise CheckpointError(f"{checkpoint} has random weights")
    names = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_NAMES[0]]
    names += [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob(NORM_STATS_FILE)]
    size = sum((checkpoint / name).stat().st_size for name in names)
    if size > LARGEST_BYTES:
        raise CheckpointError(f"{checkpoint} has {size} bytes, at most {LARGEST_BYTES} may be embedded")
    row = _evaluated(checkpoint, table)
    workshop = into.with_name(into.name + ".partial")
    shutil.rmtree(workshop, ignore_errors=True)
    for name in names:
        (workshop / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / name, workshop / name)
    (workshop / "README.md").write_text(_readme(row, table.name, checkpoint.name), "utf-8")
    list_file = workshop / CHECKSUMS_FILE
    list_file.write_text(json.dumps(checksums(workshop), indent=1) + "\n", "utf-8")
    shutil.rmtree(into, ignore_errors=True)
    workshop.rename(into)


def _evaluated(checkpoint: pathlib.Path, table: pathlib.Path) -> dict[str, Any]:
    """The reference row of a table of these weights."""
    try:
        content = json.loads(table.read_text("utf-8"))
        (row,) = (row for row in content["rows"] if row["row"] == REFERENCE and row["status"] == "ran")
        evaluated = content["checkpoint"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{table} is no table with a reference row that ran: {error}") from error
    if evaluated != checksums(checkpoint).get(WEIGHTS_FILE):
        raise CheckpointError(f"{table} is about other weights than those of {checkpoint}")
    return dict(row)


def _readme(row: dict[str, Any], table: str, step: str) -> str:
    low, high = row["interval"]
    wrong = row["wrong_object_rate"]
    return f"""# The demo policy

What `serve_policy --checkpoint demo` serves: `pi05_libero_small`, trained from scratch on demonstrations of
the scripted expert in LIBERO-Spatial, step {step}. Nothing in it was downloaded; Apache-2.0, like the rest.

Success on fixed initial states that were never trained on, with the project's own assets (no LIBERO benchmark
score): {row["successes"]} of {row["episodes"]}, 95 % interval {low:.1%} to {high:.1%}. In {wrong:.1%}
something was lifted that the prompt does not name. Per task and backend: `docs/results/{table}`.
Recipe: `docs/training.md`.
"""


if __name__ == "__main__":
    sys.exit(main())
