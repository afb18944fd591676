"""The fidelity report that lies beside engines: how close to float32 exactly these were found to be.

A computer without torch cannot make the float32 reference. `build_engines` compares the engines with the one
that `export_onnx` sent along, and writes here what it found.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping

from vlad_engines.backends.tensorrt.cache import write_atomically
from vlad_engines.backends.tensorrt.manifest import EngineManifest
from vlad_engines.export.spec import COMPONENTS, Component
from vlad_engines.fidelity.report import FidelityReport

logger = logging.getLogger("vlad.tensorrt")

Manifests = Mapping[Component, EngineManifest]


def write_report(folder: pathlib.Path, manifests: Manifests, report: FidelityReport) -> None:
    """Keep a report, good or bad, under the engines that it is about.

    Raises:
        OSError: where the folder cannot be written.
    """
    content = {"engines": _engines(manifests), "report": report.to_json()}
    write_atomically(_path(folder, manifests), json.dumps(content, indent=1).encode("utf-8"))


def read_report(folder: pathlib.Path, manifests: Manifests) -> FidelityReport | None:
    """The report on exactly these engines, or None."""
    path = _path(folder, manifests)
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["engines"] != _engines(manifests):
            raise ValueError("it is about other engines")
        return FidelityReport.from_json(content["report"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is unreadable: %s", path, error)
        return None


def _engines(manifests: Manifests) -> dict[str, str]:
    """What is compared: the plans themselves, because a rebuilt one may have taken other kernels."""
    return {component: manifests[component].plan_digest for component in COMPONENTS}


def _path(folder: pathlib.Path, manifests: Manifests) -> pathlib.Path:
    text = json.dumps(_engines(manifests), sort_keys=True)
    return folder / f"fidelity-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"
