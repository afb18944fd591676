"""Graphs exported from a checkpoint when they are needed, and gone again afterwards."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import json
import logging
import pathlib
import tempfile
from collections.abc import Iterator, Mapping

import torch

import vlad_engines.export
import vlad_engines.float8
import vlad_engines.model
from vlad_configs.errors import ConfigError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.tensorrt.cache import write_atomically
from vlad_engines.export.exporter import GraphExporter
from vlad_engines.export.fingerprint import weights_digest
from vlad_engines.export.spec import Component, GraphForm
from vlad_engines.float8.calibration import Calibration
from vlad_engines.float8.calibrator import Calibrator

logger = logging.getLogger("vlad.tensorrt")


class CheckpointGraphs:
    """See `graph_source.GraphSource`.

    Tracing all graphs takes seconds, and calibrating longer, so digests and calibration are remembered: under
    everything that decides them, the sources of this package's model, float8 and export included.

    Args:
        weights: every tensor of the network by its openpi name.
        folder: for what is remembered, and for graphs while engines are built from them.
        calibrator: for a form with float8 products; None for any other.

    Raises:
        CheckpointError: for weights that do not fit `model`.
        ConfigError: where form and calibrator contradict each other, or this onnx has no float8.
    """

    def __init__(
        self,
        model: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        form: GraphForm,
        folder: pathlib.Path,
        calibrator: Calibrator | None = None,
    ) -> None:
        self._model = model
        self._form = form
        self._weights = weights
        self._folder = folder
        self._calibrator = calibrator
        calibrate = None if calibrator is None else lambda: self._calibration(calibrator)
        self._exporter = GraphExporter(model, weights, form, calibrate)
        self._calibrated: Calibration | None = None
        self._digests: dict[Component, str] = {}

    @property
    def model(self) -> ModelConfig:
        """See `GraphSource`."""
        return self._model

    @property
    def form(self) -> GraphForm:
        """See `GraphSource`."""
        return self._form

    @functools.cached_property
    def weights_digest(self) -> str:
        """See `GraphSource`."""
        return weights_digest(self._weights)

    @property
    def calibration(self) -> str | None:
        """See `GraphSource`.

        Raises:
            ConfigError, EngineError: where calibrating fails; see `Calibrator`.
        """
        return None if self._calibrator is None else self._calibration(self._calibrator).digest

    def graph_digest(self, component: Component) -> str:
        """See `GraphSource`."""
        if component not in self._digests:
            recipe = {
                "form": self._form.to_json(),
                "calibration": self.calibration if self._form.float8(component) else None,
                **self._recipe(),
            }
            path = self._path(f"graph-{component}", recipe)
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                self._digests[component] = str(json.loads(path.read_text("utf-8"))["digest"])
        if component not in self._digests:
            self._digests[component] = self._exporter.digest(component)
            self._remember(path, {"digest": self._digests[component]})
        return self._digests[component]

    @contextlib.contextmanager
    def onnx_file(self, component: Component) -> Iterator[pathlib.Path]:
        """See `GraphSource`.

        Raises:
            ConfigError: where the folder cannot be written.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(dir=self._folder, prefix=".export-")
        except OSError as error:
            raise ConfigError(f"graphs cannot be written to {self._folder}: {error}") from error
        with temporary as name:
            folder = pathlib.Path(name)
            try:
                graph = self._exporter.write(component, folder)
            except OSError as error:
                raise ConfigError(f"graphs cannot be written to {self._folder}: {error}") from error
            yield folder / graph.file
        # Weights that were drawn or cast on a GPU leave their memory to torch, and engines need it.
        gc.collect()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()

    def _calibration(self, calibrator: Calibrator) -> Calibration:
        if self._calibrated is None:
            path = self._path("calibration", {"inputs": calibrator.inputs_digest, **self._recipe()})
            with contextlib.suppress(OSError, ValueError, ConfigError):
                self._calibrated = Calibration.from_json(json.loads(path.read_text("utf-8")))
        if self._calibrated is None:
            logger.info("calibrating fp8 with %d observations", len(calibrator.inputs))
            self._calibrated = calibrator()
            self._remember(path, self._calibrated.to_json())
        return self._calibrated

    def _remember(self, path: pathlib.Path, content: object) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(content).encode())
        except OSError as error:
            logger.warning("what was found out cannot be remembered in %s: %s", self._folder, error)

    def _path(self, what: str, recipe: Mapping[str, object]) -> pathlib.Path:
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{what}-{digest[:24]}.json"

    def _recipe(self) -> Mapping[str, object]:
        return {
            "model": self._model.to_json(),
            "weights": self.weights_digest,
            "torch": str(torch.__version__),
            "onnx": importlib.metadata.version("onnx"),
            "sources": _sources_digest(),
        }


@functools.cache
def _sources_digest() -> str:
    digest = hashlib.sha256()
    for package in (vlad_engines.export, vlad_engines.float8, vlad_engines.model):
        for folder in package.__path__:
            for path in sorted(pathlib.Path(folder).glob("*.py")):
                digest.update(path.name.encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
