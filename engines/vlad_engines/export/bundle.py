"""A folder of exported graphs and what has to be known to build and run them. Neither torch nor onnx here."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vlad_configs.errors import ConfigError, VladError
from vlad_configs.models import ModelConfig
from vlad_engines.export.fingerprint import file_digest
from vlad_engines.export.spec import COMPONENTS, Component, GraphForm
from vlad_engines.float8.calibration import Calibration

BUNDLE_FILE = "bundle.json"
REFERENCE_FILE = "reference.npz"
_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class GraphFile:
    """One exported graph.

    Attributes:
        file: its name in the folder; the weights lie beside it with the suffix `.weights`.
        graph_digest: names what is computed, but for the checkpoint's weights: see `exporter.GraphExporter`.
        file_digest, weights_file_digest: `fingerprint.file_digest` of both files.
    """

    file: str
    graph_digest: str
    file_digest: str
    weights_file_digest: str


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What `export_onnx` wrote.

    Attributes:
        weights_digest: of the checkpoint's tensors, `fingerprint.weights_digest`.
        exporter: name and version of what traced the graphs.
        calibration: of what is float8 in `form`; None where nothing is.

    Raises:
        ConfigError: where form and calibration contradict each other.
    """

    folder: pathlib.Path
    model: ModelConfig
    form: GraphForm
    weights_digest: str
    exporter: str
    graphs: Mapping[Component, GraphFile]
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if self.form.prefix_float8 != (self.calibration is not None):
            raise ConfigError("a calibration belongs to graphs with float8 products, and to no others")

    def path(self, component: Component) -> pathlib.Path:
        """The ONNX file of a component."""
        return self.folder / self.graphs[component].file

    @property
    def reference_path(self) -> pathlib.Path:
        """Where the float32 reference lies, if the export made one; see `fidelity.stored_reference`."""
        return self.folder / REFERENCE_FILE

    def write(self) -> None:
        """Describe the folder. Called last, so that a folder with a description is complete."""
        content = {
            "format": _FORMAT,
            "model": self.model.to_json(),
            "form": self.form.to_json(),
            "weights_digest": self.weights_digest,
            "exporter": self.exporter,
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "graphs": {name: dataclasses.asdict(graph) for name, graph in self.graphs.items()},
        }
        (self.folder / BUNDLE_FILE).write_text(json.dumps(content, indent=1), "utf-8")

    def check_files(self, component: Component) -> None:
        """Compare the files of a component with their digests.

        Raises:
            ConfigError: where they differ or are not there.
        """
        graph, path = self.graphs[component], self.path(component)
        for file, expected in (
            (path, graph.file_digest),
            (path.with_suffix(".weights"), graph.weights_file_digest),
        ):
            try:
                found = file_digest(file)
            except OSError as error:
                raise ConfigError(f"{file} cannot be read: {error}") from error
            if found != expected:
                raise ConfigError(f"{file} is not what was exported: its digest differs; export it again")


def read_bundle(folder: pathlib.Path) -> Bundle:
    """Read the description of an exported folder.

    Raises:
        ConfigError: where there is none, or one of another version.
    """
    path = folder / BUNDLE_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no exported graphs: {error}; make them with export_onnx"
        ) from error
    if content.get("format") != _FORMAT:
        raise ConfigError(f"{path} has format {content.get('format')!r}, this version reads {_FORMAT}")
    try:
        calibration = content["calibration"]
        return Bundle(
            folder=folder,
            model=ModelConfig.from_json(content["model"]),
            form=GraphForm.from_json(content["form"]),
            weights_digest=content["weights_digest"],
            exporter=content["exporter"],
            graphs={name: GraphFile(**content["graphs"][name]) for name in COMPONENTS},
            calibration=None if calibration is None else Calibration.from_json(calibration),
        )
    except (KeyError, TypeError, AttributeError, VladError) as error:
        raise ConfigError(f"{path} is unreadable: {error}") from error
