"""Reads the Dockerfile for those who have no Docker: `scripts/container_steps.sh` and the tests.

dockerfile.py copy FILE STAGE ROOT           perform the stage's COPYs from the build context below ROOT
dockerfile.py words FILE CMD|HEALTHCHECK ROOT  the server stage's command, /container moved below ROOT
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import shutil
import sys


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction with its continuation lines joined."""

    stage: str
    keyword: str
    text: str


def instructions(dockerfile: pathlib.Path) -> list[Instruction]:
    """The instructions of a Dockerfile in order; `stage` is the name after AS, or the base's."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found: list[Instruction] = []
    stage = ""
    for line in filter(str.strip, joined.splitlines()):
        keyword, _, text = line.strip().partition(" ")
        if keyword == "FROM":
            stage = text.split()[-1]
        found.append(Instruction(stage, keyword, text.strip()))
    return found


def context_copies(dockerfile: pathlib.Path, stage: str) -> list[tuple[list[str], str]]:
    """Sources and target of each COPY of `stage` that takes from the build context."""
    copies = [
        instruction.text.split()
        for instruction in instructions(dockerfile)
        if instruction.stage == stage and instruction.keyword == "COPY"
    ]
    return [(words[:-1], words[-1]) for words in copies if not words[0].startswith("--from")]


def exec_form(dockerfile: pathlib.Path, stage: str, keyword: str) -> list[str]:
    """The words of a CMD or HEALTHCHECK in exec form."""
    (instruction,) = (
        item for item in instructions(dockerfile) if (item.stage, item.keyword) == (stage, keyword)
    )
    words: list[str] = json.loads(instruction.text[instruction.text.index("[") :])
    return words


def _copy(dockerfile: pathlib.Path, stage: str, root: pathlib.Path) -> None:
    for sources, target in context_copies(dockerfile, stage):
        destination = root / target.lstrip("/")
        for source in (dockerfile.parent / name for name in sources):
            if source.is_dir():
                shutil.copytree(source, destination, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                folder = destination if target.endswith("/") else destination.parent
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, destination)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["copy", file, stage, root]:
            _copy(pathlib.Path(file), stage, pathlib.Path(root))
        case ["words", file, keyword, root]:
            words = exec_form(pathlib.Path(file), "server", keyword)
            print(*(f"{root}{word}" if word.startswith("/container/") else word for word in words))
        case _:
            sys.exit(__doc__)
