"""Exports the three components of a network."""

from __future__ import annotations

import functools
import hashlib
import pathlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vlad_configs.errors import CheckpointError, ConfigError
from vlad_configs.models import ModelConfig
from vlad_engines.export.bundle import BUNDLE_FILE, REFERENCE_FILE, Bundle, GraphFile
from vlad_engines.export.fingerprint import file_digest, weights_digest
from vlad_engines.export.float8_graph import FLOAT8_OPSET, check_float8_export, quantise_products
from vlad_engines.export.graphs import make_graph
from vlad_engines.export.onnx_file import (
    OPSET,
    TracedGraph,
    finished_graph,
    tensor_bytes,
    trace_graph,
    weights_file,
    write_graph,
)
from vlad_engines.export.skeleton import make_skeleton, step_conditioning
from vlad_engines.export.spec import COMPONENTS, Component, GraphForm, graph_spec
from vlad_engines.float8.calibration import Calibration
from vlad_engines.model import openpi_names

ReportProgress = Callable[[str, float], None]


def exporter_version() -> str:
    """What traces the graphs."""
    return f"torch {torch.__version__}"


class GraphExporter:
    """The graphs of one network in one form; each is traced when it is first asked for.

    Args:
        weights: every tensor of the network by its openpi name, any float dtype.
        calibrate: asked once for the calibration of what is float8 in `form`; None where nothing is.

    Raises:
        CheckpointError: for weights that do not fit `config`.
        ConfigError: where form and calibration contradict each other, or this onnx has no float8.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        form: GraphForm,
        calibrate: Callable[[], Calibration] | None = None,
    ) -> None:
        if form.prefix_float8 != (calibrate is not None):
            raise ConfigError("a calibration belongs to graphs with float8 products, and to no others")
        if form.prefix_float8:
            check_float8_export()
        _check_weights(config, weights)
        self._config = config
        self._weights = weights
        self._form = form
        self._calibrate = calibrate
        self._traced: dict[Component, tuple[TracedGraph, dict[str, Tensor]]] = {}

    def digest(self, component: Component) -> str:
        """SHA-256 of all that a graph computes, but for the checkpoint's weights.

        That is the graph itself, and the tables in it: rotations, masks, what depends on time alone.
        """
        graph, buffers = self._trace(component)
        digest = hashlib.sha256(finished_graph(graph, weights_file(_file(component)).name))
        for name in sorted(buffers):
            digest.update(name.encode())
            digest.update(tensor_bytes(buffers[name].contiguous()))
        return digest.hexdigest()

    def write(self, component: Component, folder: pathlib.Path) -> GraphFile:
        """Write graph and weights into a folder that exists.

        Raises:
            OSError: where that fails.
        """
        graph, buffers = self._trace(component)

        def value(name: str) -> Tensor:
            return buffers[name] if name in buffers else self._weights[openpi_names.openpi_name(name)]

        path = folder / _file(component)
        write_graph(graph, path, value)
        return GraphFile(
            path.name, self.digest(component), file_digest(path), file_digest(weights_file(path))
        )

    def _trace(self, component: Component) -> tuple[TracedGraph, dict[str, Tensor]]:
        if component not in self._traced:
            config, form = self._config, self._form
            conditioning = self._conditioning if component == "denoise" else torch.empty(0)
            module = make_graph(component, make_skeleton(config, form.dtype(component)), form, conditioning)
            tables = {name: table for name, table in module.named_buffers() if table.device.type != "meta"}
            opset = FLOAT8_OPSET if form.float8(component) else OPSET
            graph = trace_graph(module, graph_spec(component, config, form), opset)
            if form.float8(component):
                graph = quantise_products(graph, self._calibration)
            used = {initializer.source for initializer in graph.initializers}
            self._traced[component] = (
                graph,
                {name: table for name, table in tables.items() if name in used},
            )
        return self._traced[component]

    @functools.cached_property
    def _calibration(self) -> Calibration:
        assert self._calibrate is not None
        calibration, layers = self._calibrate(), self._config.vlm.depth - 1
        if len(calibration.layers) != layers:
            raise ConfigError(
                f"the calibration is of {len(calibration.layers)} layers, this network needs one of {layers}"
            )
        return calibration

    @functools.cached_property
    def _conditioning(self) -> Tensor:
        return step_conditioning(self._config, self._weights, self._form.num_steps)


def export_bundle(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    form: GraphForm,
    folder: pathlib.Path,
    progress: ReportProgress | None = None,
    calibration: Calibration | None = None,
) -> Bundle:
    """Write the graphs of a network and their weights.

    Args:
        weights: every tensor of the network by its openpi name, any float dtype.
        folder: created where it does not exist; an earlier export in it is replaced.
        calibration: of what is float8 in `form`; None where nothing is.

    Raises:
        CheckpointError: for weights that do not fit `config`.
        ConfigError: where the folder cannot be written, or form and calibration contradict each other.
    """
    report = progress or (lambda stage, fraction: None)
    exporter = GraphExporter(config, weights, form, None if calibration is None else lambda: calibration)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Nothing of an earlier export may be taken for a part of this one.
        for name in (BUNDLE_FILE, REFERENCE_FILE):
            (folder / name).unlink(missing_ok=True)
        report("hashing the weights", 0.0)
        digest = weights_digest(weights)
        graphs: dict[Component, GraphFile] = {}
        for index, component in enumerate(COMPONENTS):
            report(f"exporting {component}", (1 + index) / (1 + len(COMPONENTS)))
            graphs[component] = exporter.write(component, folder)
        bundle = Bundle(folder, config, form, digest, exporter_version(), graphs, calibration)
        bundle.write()
    except OSError as error:
        raise ConfigError(f"the graphs cannot be written to {folder}: {error}") from error
    report("exported", 1.0)
    return bundle


def _file(component: Component) -> pathlib.Path:
    return pathlib.Path(f"{component}.onnx")


def _check_weights(config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    expected = openpi_names.expected_tensors(config).keys()
    faults = [f"missing {name}" for name in expected - weights.keys()]
    faults += [f"unexpected {name}" for name in weights.keys() - expected]
    if faults:
        raise CheckpointError(
            f"weights do not fit this {config.family} network: " + "; ".join(sorted(faults))
        )
