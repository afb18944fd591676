"""What is measured on: its name, clocks and memory. Reads only, changes no setting."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import subprocess

import torch

_QUERY = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
    "memory.used",
    "driver_version",
)


def device_name(device: str) -> str:
    """The product name of a GPU; `cpu` for a processor."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"


def file_slug(name: str) -> str:
    """A name as a part of a file name: `NVIDIA H200` becomes `h200`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia")).strip("-")


def device_state(device: str) -> dict[str, str]:
    """Clocks, power, temperature and driver as nvidia-smi reports them; empty where it is absent."""
    if not device.startswith("cuda"):
        return {}
    index = torch.device(device).index or 0
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_QUERY, (value.strip() for value in result.stdout.split(",")), strict=False))


def software() -> dict[str, str]:
    """Versions that decide results."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["triton"] = importlib.metadata.version("triton")
    return versions


def memory_in_use_by_all_gib(device: str) -> float | None:
    """The same as seen from outside, for memory that another process holds."""
    used = device_state(device).get("memory.used", "").removesuffix(" MiB")
    return round(int(used) / 1024, 3) if used.isdecimal() else None


def memory_in_use_gib(device: str) -> float | None:
    """Device memory that is taken, by anyone and for anything, after unused blocks were given back."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return round((total - free) / 2**30, 3)
