"""What calls cost: openpi's latency table, and the raw figures as a file."""

from __future__ import annotations

import csv
import json
import pathlib
from typing import Any, Mapping

import numpy as np

STATISTICS = ("Mean", "Std", "P25", "P50", "P75", "P90", "P95", "P99")
FILE_SUFFIXES = (".csv", ".json")


class LatencyTable:
    """Collects the timings of calls, in milliseconds.

    Rows are `client_infer_ms`, what the caller waited, and each key of the reply's `policy_timing`
    and `server_timing`, prefixed with `policy_` and `server_`.
    """

    def __init__(self) -> None:
        self._calls: list[dict[str, float]] = []

    def add(self, client_infer_ms: float, reply: Mapping[str, Any]) -> None:
        """Record one call and the timings that its reply carries."""
        call = {"client_infer_ms": client_infer_ms}
        for origin in ("policy", "server"):
            for key, value in reply.get(f"{origin}_timing", {}).items():
                call[f"{origin}_{key}"] = float(value)
        self._calls.append(call)

    def statistics(self) -> dict[str, dict[str, float]]:
        """Rows in alphabetic order; a timing that some replies lack is taken over those that have it.

        `Std` is that of the calls themselves (no n-1); percentiles interpolate linearly.
        """
        return {key: self._statistics_of(key) for key in self._keys()}

    def render(self) -> str:
        """The table as text, with one decimal."""
        rows = self.statistics()
        width = max([len("ms"), *map(len, rows)])
        lines = [
            f"Timing statistics of {len(self._calls)} calls",
            "ms".ljust(width) + "".join(f"{name:>9}" for name in STATISTICS),
        ]
        for key, row in rows.items():
            lines.append(key.ljust(width) + "".join(f"{row[name]:9.1f}" for name in STATISTICS))
        return "\n".join(lines)

    def save(self, path: pathlib.Path) -> None:
        """Write the timings of each call: a column a timing as `.csv`, or with the statistics as `.json`.

        Raises:
            ValueError: for another suffix.
            OSError: if the file cannot be written.
        """
        check_suffix(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, self._keys())
                writer.writeheader()
                writer.writerows(self._calls)
        else:
            content = {"calls": self._calls, "statistics": self.statistics()}
            path.write_text(json.dumps(content, indent=2) + "\n")

    def _keys(self) -> list[str]:
        return sorted({key for call in self._calls for key in call})

    def _statistics_of(self, key: str) -> dict[str, float]:
        values = [call[key] for call in self._calls if key in call]
        row = {"Mean": float(np.mean(values)), "Std": float(np.std(values))}
        for name in STATISTICS[2:]:
            row[name] = float(np.percentile(values, int(name[1:])))
        return row


def check_suffix(path: pathlib.Path) -> None:
    """Refuse a file that `save` cannot write, before the calls are made.

    Raises:
        ValueError: if the suffix is none of `FILE_SUFFIXES`.
    """
    if path.suffix not in FILE_SUFFIXES:
        raise ValueError(f"timings are written as {' or '.join(FILE_SUFFIXES)}, not '{path.name}'")
