"""The trained policy inside the package that `--checkpoint demo` serves, where one has been put there.

A policy directory like any other, `demo_policy/`, with the SHA-256 of its files in `checksums.json`. Written
by `scripts/embed_demo_policy.py`; without it, `demo` is the small random network of `demo.py`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import pathlib

from vlad_configs.errors import CheckpointError

CHECKSUMS_FILE = "checksums.json"
LARGEST_BYTES = 16 << 20
"""Of all files together: what a package may weigh."""


def embedded_directory() -> pathlib.Path:
    """Where the policy lies, if there is one."""
    return pathlib.Path(str(importlib.resources.files(__package__) / "demo_policy"))


def embedded_policy(directory: pathlib.Path | None = None) -> pathlib.Path | None:
    """The policy's directory, every byte of it checked; None where none was put there.

    Raises:
        CheckpointError: where a file is missing, damaged or not in the list.
    """
    directory = embedded_directory() if directory is None else directory
    list_file = directory / CHECKSUMS_FILE
    if not list_file.is_file():
        return None
    try:
        written = json.loads(list_file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{list_file} cannot be read: {error}; install the package again") from error
    found = checksums(directory)
    different = sorted(name for name in {*written, *found} if written.get(name) != found.get(name))
    if different:
        raise CheckpointError(
            f"the demo policy in {directory} is damaged: {', '.join(different)}; install the package again"
        )
    return directory


def checksums(directory: pathlib.Path) -> dict[str, str]:
    """SHA-256 by name of every file of a policy directory but the list itself."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS_FILE
    }
