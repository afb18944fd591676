"""`serve_policy` as it is, except that its engine worker runs as on a computer without torch and onnx."""

from __future__ import annotations

import functools
import sys

from vlad_server import app, cli

if __name__ == "__main__":
    worker = (sys.executable, "-m", "tests.support.robot_worker")
    cli.serve_policy = functools.partial(app.serve_policy, worker_command=worker)  # type: ignore[assignment]
    cli.main()
