"""What every result of a benchmark says of itself: when, which commit, how, where; and how times spread."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def run_facts() -> dict[str, Any]:
    """Date, commit, command line and machine of this process. `VLAD_COMMIT` where there is no repository."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    module = getattr(sys.modules["__main__"].__spec__, "name", sys.argv[0])
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip() or os.environ.get("VLAD_COMMIT", ""),
        "command": f"python -m {module} {shlex.join(sys.argv[1:])}".strip(),
        "machine": {
            "cpu_count": os.cpu_count(),
            "arch": platform.machine(),
            "python": platform.python_version(),
        },
    }


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: p50, p90, p99, max, and how many."""
    values = 1e3 * np.asarray(seconds)
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return {
        "p50_ms": round(p50, 4),
        "p90_ms": round(p90, 4),
        "p99_ms": round(p99, 4),
        "max_ms": round(values.max(), 4),
        "count": len(values),
    }
