"""What an engine is, in words: written beside it, and compared before it is used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from vlad_configs.errors import VladError
from vlad_configs.models import ModelConfig
from vlad_engines.backends.tensorrt.arithmetic import Arithmetic
from vlad_engines.export.spec import Component, GraphForm

FORMAT = 2
"""Raised when files of an earlier version cannot be read any more."""

Shapes = tuple[dict[str, tuple[int, ...]], ...]
"""Input name -> shape, for each optimisation profile."""


@dataclasses.dataclass(frozen=True)
class BuildSettings:
    """How hard TensorRT tries.

    Attributes:
        optimization_level: 0 to 5; 3 is TensorRT's default, higher ones take longer to build.
        workspace_bytes: largest scratch memory that a kernel may use.
    """

    optimization_level: int = 3
    workspace_bytes: int = 8 << 30

    def __post_init__(self) -> None:
        if not 0 <= self.optimization_level <= 5:
            raise ValueError(f"optimization_level must lie in 0..5, not {self.optimization_level}")
        if self.workspace_bytes < 0:
            raise ValueError(f"workspace_bytes must not be negative, not {self.workspace_bytes}")


@dataclasses.dataclass(frozen=True)
class Platform:
    """Where an engine was built, and the only kind of place where it runs.

    Attributes:
        compute_capability: such as `9.0`.
    """

    tensorrt: str
    gpu: str
    compute_capability: str


@dataclasses.dataclass(frozen=True)
class EngineIdentity:
    """Everything that decides what an engine computes and where it can.

    Attributes:
        weights_digest: of the checkpoint's tensors.
        graph_digest: of the ONNX graph and its tables.
        calibration: `Calibration.digest` of products in float8; None where there are none.
        profiles: the shapes that it runs, exactly these.
        flags: names of the builder's flags and tactic sources.
    """

    component: Component
    model: ModelConfig
    form: GraphForm
    arithmetic: Arithmetic
    weights_digest: str
    graph_digest: str
    calibration: str | None
    profiles: Shapes
    platform: Platform
    settings: BuildSettings
    flags: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads them back."""
        plain: dict[str, Any] = json.loads(
            json.dumps(dataclasses.asdict(self) | {"form": self.form.to_json()})
        )
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineIdentity:
        """Read what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError, VladError: for anything else.
        """
        values = dict(data)
        values["model"] = ModelConfig.from_json(values["model"])
        values["form"] = GraphForm.from_json(values["form"])
        values["platform"] = Platform(**values["platform"])
        values["settings"] = BuildSettings(**values["settings"])
        values["flags"] = tuple(values["flags"])
        values["profiles"] = tuple(
            {name: tuple(shape) for name, shape in profile.items()} for profile in values["profiles"]
        )
        return cls(**values)

    @property
    def digest(self) -> str:
        """A name that no other engine shares."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def differences(self, other: EngineIdentity) -> list[str]:
        """What distinguishes two engines, for people: `field: mine, not theirs`."""
        return list(_differences("", self.to_json(), other.to_json()))


@dataclasses.dataclass(frozen=True)
class EngineManifest:
    """The description that lies beside an engine.

    Attributes:
        plan_bytes, plan_digest: of the engine's file; see `fingerprint.file_digest`.
        built_at: UTC, ISO 8601.
        build_seconds: how long TensorRT took.
    """

    identity: EngineIdentity
    plan_bytes: int
    plan_digest: str
    built_at: str
    build_seconds: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; `from_json` reads them back."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"format": FORMAT, **values, "identity": self.identity.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EngineManifest:
        """Read what `to_json` wrote.

        Raises:
            ValueError: for anything else.
        """
        values = dict(data)
        if values.pop("format", None) != FORMAT:
            raise ValueError(f"a manifest of another format than {FORMAT}")
        try:
            return cls(**{**values, "identity": EngineIdentity.from_json(values["identity"])})
        except (KeyError, TypeError, AttributeError, VladError) as error:
            raise ValueError(f"an unreadable manifest: {error}") from error


def _differences(path: str, mine: Any, theirs: Any) -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for name in sorted(mine.keys() | theirs.keys()):
            yield from _differences(f"{path}.{name}".lstrip("."), mine.get(name), theirs.get(name))
    elif mine != theirs:
        yield f"{path}: {mine}, not {theirs}"
