"""The table of backends: success of one policy in each, on the same initial states, from the same noise.

    python scripts/libero_table.py CHECKPOINT --out docs/results/DATE-DEVICE-success.json

For each row: a daemon with the row's options, `eval_libero` against it, and the daemon's end. Rows and their
options are in `vlad_libero/evaluation/rows.py`. Writes the table as JSON, as Markdown and as a picture beside
it, anew after each row. The same command goes on where it was stopped, in the middle of a row too. A row
whose daemon does not start stands in the table as "not run", with the daemon's last words, and is tried again
next time.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "clients")]

from scripts import demo  # noqa: E402
from vlad_libero.arguments import index_list  # noqa: E402
from vlad_libero.errors import LiberoError  # noqa: E402
from vlad_libero.evaluation.backend_table import finished_row, markdown, missing_row  # noqa: E402
from vlad_libero.evaluation.plot import plot_success  # noqa: E402
from vlad_libero.evaluation.results import read_summary  # noqa: E402
from vlad_libero.evaluation.rows import REFERENCE, ROWS, Row, chosen_rows  # noqa: E402

DAEMON = f"{shlex.quote(sys.executable)} -m vlad_server.cli"
_READY_WITHIN_S = 420.0


def main() -> int:
    """Run what is missing of the table; 0 where every row ran, 3 where some could not."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        rows = chosen_rows(options.rows)
        daemons = _daemons(options.daemon)
        if min(options.workers, options.trials, options.reference_trials, options.parallel) < 1:
            raise LiberoError("--workers, --trials, --reference-trials and --parallel must be at least 1")
        runner = _Runner(options, daemons)
    except LiberoError as error:
        print(f"libero_table: {error}", file=sys.stderr)
        return 2
    try:
        runner.run(rows)
    finally:
        runner.end()
    missing = [row["row"] for row in runner.table(rows) if row["status"] != "ran"]
    print(options.out.with_suffix(".md").read_text("utf-8"))
    print(f"libero_table: {options.out}; not run: {', '.join(missing) or 'none'}")
    return 3 if missing else 0


class _Runner:
    """Runs rows, some at a time, each with a daemon of its own."""

    def __init__(self, options: argparse.Namespace, daemons: dict[str, str]) -> None:
        self._options, self._daemons = options, daemons
        self._work: pathlib.Path = options.work
        self._work.mkdir(parents=True, exist_ok=True)
        self._reasons: dict[str, str] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._ending = threading.Event()
        self._writing = threading.Lock()
        self._check_policy()

    def run(self, rows: list[Row]) -> None:
        """All rows, the reference first; the table is written after each."""
        with concurrent.futures.ThreadPoolExecutor(self._options.parallel) as pool:
            futures = {pool.submit(self._row, row): row for row in rows}
            try:
                for future in concurrent.futures.as_completed(futures):
                    future.result()
                    self.write(rows)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                if any(not future.done() for future in futures):
                    self.end()

    def end(self) -> None:
        """End daemons and evaluations that still run, simulators included."""
        self._ending.set()
        for process in list(self._processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def table(self, rows: list[Row]) -> list[dict[str, Any]]:
        """The rows as far as they are."""
        reference = self._summary(ROWS[REFERENCE])
        return [
            missing_row(row, self._reasons.get(row.name, "it was not its turn yet"))
            if (summary := self._summary(row)) is None
            else finished_row(row, summary, self._commands(row, summary), reference)
            for row in rows
        ]

    def write(self, rows: list[Row]) -> None:
        """JSON, Markdown and picture."""
        out: pathlib.Path = self._options.out
        table = self.table(rows)
        reference = self._summary(ROWS[REFERENCE]) or {}
        content = {
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "checkpoint": {"name": self._checkpoint().name, "sha256": self._fingerprint()},
            "protocol": reference.get("protocol"),
            "rows": table,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        partial.replace(out)
        out.with_suffix(".md").write_text(markdown(table), "utf-8")
        plot_success(out.with_suffix(".png"), [(row["row"], row) for row in table if row["status"] == "ran"])

    def _row(self, row: Row) -> None:
        if self._ending.is_set() or self._summary(row) is not None:
            return
        directory = self._work / row.name
        directory.mkdir(parents=True, exist_ok=True)
        log = directory / "daemon.log"
        print(f"libero_table: row {row.name}", flush=True)
        command = shlex.split(self._daemons.get(row.backend, DAEMON))
        arguments = ["--env", "LIBERO", "--checkpoint", self._served(), *row.serve_arguments()]
        if self._options.device is not None:
            arguments += ["--device", self._options.device]
        try:
            with demo.daemon(log, arguments, command=command) as process:
                self._processes.add(process)
                port, metrics_port = demo.ports(process, log)
                demo.wait_ready(process, metrics_port, within_s=_READY_WITHIN_S)
                self._evaluate(row, port, directory)
                demo.stop(process)
            self._reasons.pop(row.name, None)
        except demo.DemoError as error:
            self._reasons[row.name] = f"{error}: {_last_words(log)}"
            print(f"libero_table: row {row.name} not run: {self._reasons[row.name]}", flush=True)

    def _evaluate(self, row: Row, port: int, directory: pathlib.Path) -> None:
        command = [sys.executable, "-m", "vlad_libero.evaluation.cli", "--port", str(port)]
        command += [*self._protocol(row), "--out", str(directory)]
        command += ["--workers", str(max(1, self._options.workers // self._options.parallel))]
        with (directory / "evaluation.log").open("ab") as stream:
            # A group of its own, so that its simulators can be ended with it.
            process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
            self._processes.add(process)
            code = process.wait()
            self._processes.discard(process)
        if code:
            raise demo.DemoError(f"the evaluation ended with exit code {code}")

    def _protocol(self, row: Row) -> list[str]:
        options = self._options
        trials = options.reference_trials if row.name == REFERENCE else options.trials
        arguments = [*row.play_arguments(), "--trials", str(trials), "--assets", options.assets]
        if options.tasks is not None:
            arguments += ["--tasks", ",".join(map(str, options.tasks))]
        if options.max_steps:
            arguments += ["--max-steps", str(options.max_steps)]
        return arguments

    def _commands(self, row: Row, summary: dict[str, Any]) -> list[str]:
        """What repeats the row, on the kind of device that it had."""
        served = (summary.get("served") or {}).get("device") or self._options.device
        device = [] if served is None else ["--device", served]
        policy = ["--env", "LIBERO", "--checkpoint", "CHECKPOINT"]
        serve = shlex.join(["serve_policy", *policy, *row.serve_arguments(), *device])
        return [serve, shlex.join(["eval_libero", *self._protocol(row)])]

    def _summary(self, row: Row) -> dict[str, Any] | None:
        directory = self._work / row.name
        return read_summary(directory) if (directory / "summary.json").exists() else None

    def _checkpoint(self) -> pathlib.Path:
        return pathlib.Path(self._options.checkpoint)

    def _served(self) -> str:
        """As the daemon, which runs in another directory, can take it."""
        checkpoint = self._checkpoint()
        return str(checkpoint.resolve()) if checkpoint.is_dir() else str(checkpoint)

    def _fingerprint(self) -> str | None:
        weights = self._checkpoint() / "model.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None

    def _check_policy(self) -> None:
        """Refuse to mix rows of different policies or protocols."""
        options = self._options
        wanted = {
            "checkpoint": self._fingerprint() or options.checkpoint,
            "tasks": None if options.tasks is None else list(options.tasks),
            "trials": options.trials,
            "reference_trials": options.reference_trials,
            "max_steps": options.max_steps,
            "assets": options.assets,
        }
        file = self._work / "table.json"
        if not file.exists():
            file.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")
        before = json.loads(file.read_text("utf-8"))
        if different := sorted(key for key in wanted if before.get(key) != wanted[key]):
            raise LiberoError(
                f"{self._work} holds rows of another table ({', '.join(different)} differ); "
                "name another --work"
            )


def _last_words(log: pathlib.Path) -> str:
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "it said nothing"


def _daemons(given: list[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in given]
    if wrong := [entry for entry, (_, sign, command) in zip(given, pairs, strict=True) if not command]:
        raise LiberoError(f"--daemon must be BACKEND=COMMAND, not '{wrong[0]}'")
    return {backend: command for backend, _, command in pairs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="directory, or the embedded demo")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file of the table")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "out" / "libero-table")
    parser.add_argument("--rows", nargs="*", default=[], help=f"(all): {', '.join(ROWS)}")
    parser.add_argument("--tasks", type=index_list, help="indices such as 0,2,5-7 (all)")
    parser.add_argument("--trials", type=int, default=20, help="of each task and row (20)")
    parser.add_argument("--reference-trials", type=int, default=50, help="of each task of the reference (50)")
    parser.add_argument("--max-steps", type=int, default=0, help="(the suite's)")
    parser.add_argument("--assets", choices=("procedural", "official"), default="procedural")
    parser.add_argument("--device", help="of serve_policy")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="simulators in all")
    parser.add_argument("--parallel", type=int, default=1, help="rows at a time (1)")
    parser.add_argument(
        "--daemon",
        action="append",
        default=[],
        metavar="BACKEND=COMMAND",
        help="what starts serve_policy for a backend, such as another interpreter",
    )
    return parser


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
