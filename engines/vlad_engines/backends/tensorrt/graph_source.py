"""Where the graphs come from that engines are built from."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from vlad_configs.models import ModelConfig
from vlad_engines.export.bundle import Bundle
from vlad_engines.export.spec import Component, GraphForm


class GraphSource(Protocol):
    """The graphs of one network in one form."""

    @property
    def model(self) -> ModelConfig: ...

    @property
    def form(self) -> GraphForm: ...

    @property
    def weights_digest(self) -> str:
        """Of the checkpoint's tensors."""
        ...

    def graph_digest(self, component: Component) -> str:
        """Of all that a graph computes, but for the weights."""
        ...

    @property
    def calibration(self) -> str | None:
        """Digest of the calibration that graphs with float8 products hold; None where there are none."""
        ...

    def onnx_file(self, component: Component) -> AbstractContextManager[pathlib.Path]:
        """The ONNX file; what is temporary about it goes at the end."""
        ...


class BundleGraphs:
    """Graphs that `export_onnx` wrote. Needs neither torch nor onnx."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    @property
    def model(self) -> ModelConfig:
        """See `GraphSource`."""
        return self._bundle.model

    @property
    def form(self) -> GraphForm:
        """See `GraphSource`."""
        return self._bundle.form

    @property
    def weights_digest(self) -> str:
        """See `GraphSource`."""
        return self._bundle.weights_digest

    def graph_digest(self, component: Component) -> str:
        """See `GraphSource`."""
        return self._bundle.graphs[component].graph_digest

    @property
    def calibration(self) -> str | None:
        """See `GraphSource`."""
        calibration = self._bundle.calibration
        return None if calibration is None else calibration.digest

    @contextlib.contextmanager
    def onnx_file(self, component: Component) -> Iterator[pathlib.Path]:
        """See `GraphSource`.

        Raises:
            ConfigError: where the files are not those that were exported.
        """
        self._bundle.check_files(component)
        yield self._bundle.path(component)
