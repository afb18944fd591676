"""Episodes on disk as they finish, and the summary that is committed."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from typing import Any, Iterable, Mapping, Sequence

from vlad_libero.errors import ResultsError
from vlad_libero.evaluation.protocol import Protocol
from vlad_libero.evaluation.statistics import wilson_interval

EPISODES_FILE = "episodes.jsonl"
SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class EpisodeResult:
    """How one episode went.

    Attributes:
        task: index in the suite.
        trial: index of the initial state.
        success: whether the goal was reached in time.
        steps: actions of the policy that were executed.
        requests: chunks that the policy computed.
        wrong_object: whether an object that the goal does not name was lifted.
        infer_ms: median time of a request, as the client saw it.
        seconds: wall time of the episode.
    """

    task: int
    trial: int
    success: bool
    steps: int
    requests: int
    wrong_object: bool
    infer_ms: float
    seconds: float

    @property
    def key(self) -> tuple[int, int]:
        """Task and trial."""
        return self.task, self.trial


class EpisodeLog:
    """The episodes of one run: a JSON line each, appended as they finish, so that a run can go on.

    A line that was cut off while it was written is dropped, and its episode runs again.
    """

    def __init__(self, directory: pathlib.Path, header: Mapping[str, Any]) -> None:
        """Open `directory` for a run described by `header`.

        Raises:
            ResultsError: where it holds a run of something else.
        """
        self._path = directory / EPISODES_FILE
        directory.mkdir(parents=True, exist_ok=True)
        self.results: dict[tuple[int, int], EpisodeResult] = {}
        if self._path.exists():
            self._continue(header)
        else:
            self._append(dict(header))

    def add(self, result: EpisodeResult) -> None:
        """Keep a finished episode."""
        self.results[result.key] = result
        self._append(dataclasses.asdict(result))

    def _append(self, content: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(content) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def _continue(self, header: Mapping[str, Any]) -> None:
        lines = self._path.read_text("utf-8").split("\n")
        whole, rest = lines[:-1], lines[-1]
        if not whole:
            raise ResultsError(f"{self._path} holds no run; remove it")
        written = json.loads(whole[0])
        different = sorted(
            key for key in {*written, *header} if written.get(key) != json.loads(json.dumps(header.get(key)))
        )
        if different:
            raise ResultsError(
                f"{self._path} holds another run ({', '.join(different)} differ); choose another --out"
            )
        if rest:
            self._path.write_text("\n".join(whole) + "\n", "utf-8")
        for line in whole[1:]:
            result = _episode(json.loads(line), self._path)
            self.results[result.key] = result


def _episode(content: Mapping[str, Any], source: pathlib.Path) -> EpisodeResult:
    try:
        return EpisodeResult(**content)
    except TypeError as error:
        raise ResultsError(f"{source} holds an episode that cannot be read: {error}") from error


def summarise(
    protocol: Protocol,
    results: Iterable[EpisodeResult],
    prompts: Mapping[int, str],
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """One row of the table: success over everything and per task, with 95 % intervals.

    Args:
        prompts: instruction by task index.
        run: what was run: backend, precision, steps, variant, command and the like.
    """
    episodes = sorted(results, key=lambda result: result.key)
    return {
        **run,
        "suite": protocol.suite,
        **_share(episodes),
        "wrong_object_rate": _mean([result.wrong_object for result in episodes]),
        "mean_steps_of_successes": _mean([result.steps for result in episodes if result.success]),
        "median_infer_ms": _median([result.infer_ms for result in episodes]),
        "per_task": [
            {
                "task": task,
                "prompt": prompts[task],
                **_share([result for result in episodes if result.task == task]),
            }
            for task in protocol.tasks
        ],
        "protocol": protocol.to_json(),
        "protocol_fingerprint": protocol.fingerprint(),
        "outcomes": [[result.task, result.trial, result.success] for result in episodes],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def write_summary(path: pathlib.Path, summary: Mapping[str, Any]) -> None:
    """Write a summary as JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    os.replace(partial, path)


def read_summary(path: pathlib.Path) -> dict[str, Any]:
    """A summary from its file, or from the directory of its run.

    Raises:
        ResultsError: where there is none, or one without its outcomes.
    """
    path = path / SUMMARY_FILE if path.is_dir() else path
    try:
        summary: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} is no summary of an evaluation: {error}") from error
    missing = {"outcomes", "protocol", "protocol_fingerprint"} - set(summary)
    if missing:
        raise ResultsError(f"{path} lacks {', '.join(sorted(missing))}")
    return summary


def outcomes(summary: Mapping[str, Any]) -> dict[tuple[int, int], bool]:
    """Success by (task, trial)."""
    return {(task, trial): bool(success) for task, trial, success in summary["outcomes"]}


def _share(episodes: Sequence[EpisodeResult]) -> dict[str, Any]:
    successes = sum(result.success for result in episodes)
    return {
        "episodes": len(episodes),
        "successes": successes,
        "success_rate": successes / len(episodes) if episodes else None,
        "interval": list(wilson_interval(successes, len(episodes))),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    ordered = sorted(values)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2
