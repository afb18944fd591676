"""Remembers passed checks, so that only the first start of a kind pays for the float32 reference.

A check is remembered under a digest of everything that could change its outcome: the file of the weights,
the requests and noise, the backend's own description, precision and steps, the device and its driver, the
libraries, and every source file of this package. Only passed checks are kept. Whatever is unreadable, or of
another shape, counts as never seen.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import vlad_engines
from vlad_configs.fidelity import fidelity_thresholds
from vlad_configs.models import ModelConfig
from vlad_engines.checkpoint.demo import cache_directory
from vlad_engines.checkpoint.detect import CheckpointFiles
from vlad_engines.checkpoint.random_checkpoint import is_random
from vlad_engines.fidelity.observations import FidelityCase
from vlad_engines.fidelity.report import FidelityReport

logger = logging.getLogger("vlad.fidelity")

_FOLDER = "fidelity"
_SOURCE_SUFFIXES = (".py", ".cu", ".cuh", ".cpp", ".h", ".json")


class FidelityCache:
    """Reports of passed checks, one small file each.

    Args:
        folder: where they are kept; None for the user's cache directory.
    """

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        self._folder = cache_directory() / _FOLDER if folder is None else folder

    def find(self, digest: str) -> FidelityReport | None:
        """The report of a check that passed before, or None."""
        try:
            report = FidelityReport.from_json(json.loads(self._path(digest).read_text("utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("a remembered fidelity check is unreadable and done again: %s", error)
            return None
        # The figures were remembered, the verdict is today's.
        today = dataclasses.replace(report, thresholds=fidelity_thresholds(report.precision))
        return today if today.passed else None

    def keep(self, digest: str, report: FidelityReport) -> None:
        """Remember a report that passed. A place that cannot be written is no reason not to serve."""
        if not report.passed:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Another process may look at any moment: the file appears complete or not at all.
            with tempfile.NamedTemporaryFile("w", dir=self._folder, delete=False, encoding="utf-8") as file:
                json.dump(report.to_json(), file, indent=1)
            os.replace(file.name, self._path(digest))
        except OSError as error:
            logger.warning("the fidelity check cannot be remembered in %s: %s", self._folder, error)

    def _path(self, digest: str) -> pathlib.Path:
        return self._folder / f"{digest}.json"


def check_digest(
    files: CheckpointFiles,
    model: ModelConfig,
    cases: Sequence[FidelityCase],
    *,
    backend: str,
    options: Mapping[str, Any],
    components: Mapping[str, Any],
    device: str,
) -> str:
    """A name for one check that no other check shares. Imports torch, which decides about the outcome too.

    Args:
        options: of the backend.
        components: what the backend says about itself.
    """
    import torch

    identity = {
        "weights": _weights_identity(files),
        "model": model.to_json(),
        "cases": _cases_digest(cases),
        "backend": backend,
        "options": dict(options),
        "components": dict(components),
        "device": _device_identity(device),
        "torch": str(torch.__version__),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "numpy": np.__version__,
        "source": source_digest(),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]


@functools.cache
def source_digest() -> str:
    """Digest of every source file of this package."""
    root = pathlib.Path(vlad_engines.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in _SOURCE_SUFFIXES and path.is_file():
            digest.update(str(path.relative_to(root)).encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _weights_identity(files: CheckpointFiles) -> list[Any]:
    """Without reading gigabytes: a file that was replaced or written to has another of these."""
    if is_random(files.path):
        return [str(files.path), files.config]
    path = files.header.path.resolve()
    status = path.stat()
    return [
        str(path),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        files.config,
        sorted(files.header.metadata.items()),
    ]


def _cases_digest(cases: Sequence[FidelityCase]) -> str:
    digest = hashlib.sha256()
    for case in cases:
        inputs = case.inputs
        digest.update(repr(inputs.cameras).encode())
        for array in (inputs.images, inputs.tokens, inputs.token_mask, inputs.state, case.noise):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _device_identity(device: str) -> list[str]:
    import torch

    if not device.startswith("cuda"):
        # Which vector instructions the processor has decides about sums.
        return [device, torch.backends.cpu.get_cpu_capability()]
    properties = torch.cuda.get_device_properties(device)
    return [properties.name, f"{properties.major}.{properties.minor}", str(torch.version.cuda), _driver()]


def _driver() -> str:
    version = pathlib.Path("/proc/driver/nvidia/version")
    try:
        return version.read_text("utf-8").splitlines()[0]
    except OSError:
        return "unknown"
