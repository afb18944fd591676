"""A results file: where it was measured, how, and its rows."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from vlad_configs.errors import ConfigError
from vlad_engines.bench.row import BenchRow

RESULTS_DIRECTORY = pathlib.Path("docs") / "results"


@dataclasses.dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        date: ISO date, UTC.
        device_before, device_after: clocks, power and temperature around the run; empty without nvidia-smi.
        software: versions.
        floor_source: where the device's peaks are from; None where no floor is known.
    """

    name: str
    date: str
    gpu: str
    command: str
    commit: str
    software: Mapping[str, str]
    device_before: Mapping[str, str]
    device_after: Mapping[str, str]
    floor_source: str | None
    rows: Sequence[BenchRow]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; `read_results` reads them back."""
        return dataclasses.asdict(self)

    def write(self, path: pathlib.Path) -> None:
        """Write JSON; makes the folder where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n", "utf-8")


def read_results(path: pathlib.Path) -> Results:
    """Read what `Results.write` wrote.

    Raises:
        ConfigError: for anything else.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        rows = [BenchRow.from_json(row) for row in content.pop("rows")]
        return Results(rows=rows, **content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is no results file of bench_policy: {error}") from error


def today() -> str:
    """ISO date, UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


def commit_of_this_code() -> str:
    """The commit that runs, `-dirty` where files were changed; `unknown` outside a repository."""
    folder = pathlib.Path(__file__).resolve().parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10", "--match="],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
