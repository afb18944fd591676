"""Makes the virtual environment that the Makefile's targets use; returns at once where it is up to date.

Standard library only: this is the first thing that runs on a fresh machine.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAMP = "vlad-set-up"

_KEYED_ON = ("pyproject.toml", "clients/pyproject.toml", "scripts/set_up.py")
_GPU_TRACES = ("/dev/nvidiactl", "/dev/nvhost-gpu", "/etc/nv_tegra_release")


def set_up(venv: pathlib.Path) -> None:
    """Create `venv` and install the project, its client and the development tools, both editable.

    Raises:
        SystemExit: with one line for people where a step fails.
    """
    stamp = venv / STAMP
    if stamp.is_file() and stamp.read_text() == _fingerprint() and _runs(venv):
        return
    if not _runs(venv):
        print(f"set-up: creating {venv}", flush=True)
        _run([sys.executable, "-m", "venv", "--clear", str(venv)], hint="Debian keeps it in python3-venv")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    torch = torch_requirement(_torch_range(), _torch_versions(pip), has_gpu=_has_gpu())
    print(f"set-up: installing {torch}", flush=True)
    _run([*pip, "install", torch])
    print("set-up: installing vlad, vlad-client and the development tools", flush=True)
    _run([*pip, "install", "--quiet", torch, "-e", f"{ROOT}[dev]", "-e", f"{ROOT / 'clients'}[plot]"])
    stamp.write_text(_fingerprint())


def torch_requirement(allowed: str, versions: Sequence[str], *, has_gpu: bool) -> str:
    """The torch to install: the newest build in range that suits the machine.

    A CPU build (local version `+cpu`) saves gigabytes where there is no GPU, and is of no use where
    there is one; pip alone looks at the number only.

    Args:
        allowed: requirement of the project, such as `torch>=2.8,<2.14`.
        versions: what the package index offers; empty where it does not tell.

    Returns:
        An exact requirement, or `allowed` where no suitable build is known.
    """
    lowest, limit = (
        _release(match[1]) if (match := re.search(rf"{sign}([\d.]+)", allowed)) else default
        for sign, default in ((">=", ()), ("<", (sys.maxsize,)))
    )
    suitable = [
        version
        for version in versions
        if version.endswith("+cpu") != has_gpu and lowest <= _release(version) < limit
    ]
    return f"torch=={max(suitable, key=_release)}" if suitable else allowed


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version.partition("+")[0]))


def _torch_range() -> str:
    match = re.search(r'"(torch[<>=][^"]*)"', (ROOT / "pyproject.toml").read_text())
    if match is None:
        sys.exit("set-up: pyproject.toml names no torch")
    return match[1]


def _torch_versions(pip: Sequence[str]) -> list[str]:
    listing = subprocess.run(
        [*pip, "index", "versions", "torch"], capture_output=True, text=True, check=False
    ).stdout
    match = re.search(r"^Available versions: (.*)$", listing, re.MULTILINE)
    return match[1].split(", ") if match else []


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or any(pathlib.Path(path).exists() for path in _GPU_TRACES)


def _fingerprint() -> str:
    contents = b"".join((ROOT / name).read_bytes() for name in _KEYED_ON)
    return hashlib.sha256(contents).hexdigest()


def _runs(venv: pathlib.Path) -> bool:
    python = venv / "bin" / "python"
    return (
        python.exists() and subprocess.run([python, "-m", "pip", "-V"], capture_output=True).returncode == 0
    )


def _run(command: Sequence[str], hint: str = "the lines above say why") -> None:
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"set-up: this failed: {' '.join(command)} ({hint})")


if __name__ == "__main__":
    set_up(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".venv")
