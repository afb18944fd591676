"""What every result of a benchmark says about itself: when, of which commit, how, on which machine."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from typing import Any


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
