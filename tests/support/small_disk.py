"""A file system of a few kilobytes, so that the kernel itself says that it is full."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.support.daemon import ROOT

_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


def run_on_small_disk(folder: pathlib.Path, size: str, program: str) -> list[str]:
    """Run a Python program beside which `folder` is a file system of its own; returns what it prints.

    Only the program sees that file system. The test is skipped where none may be mounted.

    Args:
        size: such as `64k`.
        program: finds the folder in `folder`.
    """
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*_NAMESPACE, *mount], check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    begin = (
        f"import pathlib, subprocess, sys; folder = pathlib.Path({str(folder)!r}); "
        f"subprocess.run({mount!r}, check=True)\n"
    )
    result = subprocess.run(
        [*_NAMESPACE, sys.executable, "-c", begin + program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()
