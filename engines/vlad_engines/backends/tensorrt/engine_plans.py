"""Gets the plans of all components: from a cache that builds what is missing, or from a prebuilt folder."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from vlad_configs.errors import ConfigError
from vlad_configs.models import ModelConfig
from vlad_configs.pruning import TokenPruning
from vlad_engines.backends.tensorrt.api import ReportProgress, TensorRt
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic
from vlad_engines.backends.tensorrt.builder import PlanBuilder
from vlad_engines.backends.tensorrt.cache import EngineCache, EngineFolder, Plan, TimingCache
from vlad_engines.backends.tensorrt.device import Device
from vlad_engines.backends.tensorrt.graph_source import GraphSource
from vlad_engines.backends.tensorrt.manifest import BuildSettings, EngineIdentity, Platform
from vlad_engines.export.spec import (
    COMPONENTS,
    Component,
    DenoiseForm,
    GraphForm,
    ShapeKey,
    shape_profiles,
)

Plans = dict[Component, Plan]


@dataclasses.dataclass(frozen=True)
class Engineering:
    """What the engines are for.

    Attributes:
        keys: the shapes that they have to run.
        pruning: which image tokens the prefix keeps; None for all.
    """

    model: ModelConfig
    num_steps: int
    arithmetic: ComponentArithmetic
    keys: tuple[ShapeKey, ...]
    pruning: TokenPruning | None = None

    def form(self, denoise_form: DenoiseForm) -> GraphForm:
        """The graphs that do so, with denoising in this form."""
        return self.arithmetic.form(self.num_steps, denoise_form, self.pruning)


class PlanProvider(Protocol):
    """Where a backend gets its engines from."""

    def provide(
        self, wanted: Engineering, tensorrt: TensorRt, device: Device, progress: ReportProgress
    ) -> Plans:
        """The plan of each component. May take minutes; the device's context is current.

        Raises:
            ConfigError: where an engine is missing and cannot be built.
            EngineError: where TensorRT fails.
        """
        ...


class BuiltPlans:
    """Plans from a cache; what is missing is built from graphs.

    Args:
        source: its graphs compute as `Engineering.arithmetic` says.
        settings: for all components, or for each its own.
    """

    def __init__(
        self,
        cache: EngineCache,
        source: GraphSource,
        settings: BuildSettings | Mapping[Component, BuildSettings],
    ) -> None:
        self._cache = cache
        self._source = source
        if isinstance(settings, BuildSettings):
            settings = dict.fromkeys(COMPONENTS, settings)
        self._settings = settings

    def provide(
        self, wanted: Engineering, tensorrt: TensorRt, device: Device, progress: ReportProgress
    ) -> Plans:
        """See `PlanProvider`."""
        self._check(wanted)
        progress("looking for engines", 0.0)
        platform = platform_of(tensorrt, device)
        timing = self._timing_cache(platform)
        return {
            component: self._obtain(component, wanted, tensorrt, platform, timing, progress)
            for component in COMPONENTS
        }

    def _check(self, wanted: Engineering) -> None:
        source = self._source
        form = wanted.form(source.form.denoise_form)
        if source.model != wanted.model or source.form != form:
            raise ConfigError(
                f"the graphs are of {source.model} in {source.form}; wanted is {wanted.model} in {form}: "
                "export them again"
            )

    def _obtain(
        self,
        component: Component,
        wanted: Engineering,
        tensorrt: TensorRt,
        platform: Platform,
        timing: TimingCache,
        progress: ReportProgress,
    ) -> Plan:
        source, arithmetic = self._source, wanted.arithmetic.of(component)
        builder = PlanBuilder(tensorrt, self._settings[component], timing)
        profiles = shape_profiles(component, source.model, source.form, wanted.keys)
        identity = EngineIdentity(
            component=component,
            model=source.model,
            form=source.form,
            arithmetic=arithmetic,
            weights_digest=source.weights_digest,
            graph_digest=source.graph_digest(component),
            calibration=source.calibration if source.form.float8(component) else None,
            profiles=profiles,
            platform=platform,
            settings=self._settings[component],
            flags=tensorrt.flags(arithmetic),
        )

        def build() -> object:
            with source.onnx_file(component) as onnx:
                stage = f"building the {component} engine"
                return builder.build(onnx, arithmetic, profiles, stage, progress)

        return self._cache.obtain(identity, build)

    def _timing_cache(self, platform: Platform) -> TimingCache:
        name = re.sub(r"\W+", "-", f"{platform.tensorrt} {platform.gpu} {platform.compute_capability}")
        return TimingCache(self._cache.folder / f"timing-{name}.cache")


class GivenPlans:
    """Plans that are at hand, for what they were built for."""

    def __init__(self, plans: Plans) -> None:
        self._plans = dict(plans)

    def provide(
        self, wanted: Engineering, tensorrt: TensorRt, device: Device, progress: ReportProgress
    ) -> Plans:
        """See `PlanProvider`."""
        return dict(self._plans)


class PrebuiltPlans:
    """Plans that `build_engines` made elsewhere. Needs neither torch nor a checkpoint's weights.

    Args:
        weights_digest: of the weights that the engines must have been built from; None where they are
            not at hand, and whatever the folder holds is served.
        instead: why nothing is built, where that needs saying; ends the message if no engine fits.
    """

    def __init__(self, folder: EngineFolder, weights_digest: str | None, instead: str = "") -> None:
        self._folder = folder
        self._weights_digest = weights_digest
        self._instead = instead

    def provide(
        self, wanted: Engineering, tensorrt: TensorRt, device: Device, progress: ReportProgress
    ) -> Plans:
        """See `PlanProvider`."""
        progress("looking for engines", 0.0)
        platform = platform_of(tensorrt, device)
        try:
            plans: Plans = {
                component: self._folder.find(
                    component, lambda found: misfits(found, wanted, platform, self._weights_digest)
                )
                for component in COMPONENTS
            }
        except ConfigError as error:
            raise ConfigError(f"{error}{self._instead}") from error
        check_companions([plan.manifest.identity for plan in plans.values()])
        return plans


def misfits(
    found: EngineIdentity, wanted: Engineering, platform: Platform, weights_digest: str | None
) -> list[str]:
    """What speaks against an engine, in words: `field: of the engine, not wanted`.

    More shapes than wanted, any effort of the builder, and any calibration are welcome.
    """
    fitting = dataclasses.replace(
        found,
        model=wanted.model,
        form=wanted.form(found.form.denoise_form),
        arithmetic=wanted.arithmetic.of(found.component),
        weights_digest=found.weights_digest if weights_digest is None else weights_digest,
        platform=platform,
    )
    faults = found.differences(fitting)
    needed = shape_profiles(found.component, wanted.model, fitting.form, wanted.keys)
    faults += [f"profiles: none for {shapes}" for shapes in needed if shapes not in found.profiles]
    return faults


def check_companions(identities: Sequence[EngineIdentity]) -> None:
    """Engines of different forms or weights hand each other nonsense.

    Raises:
        ConfigError: where they do not belong together.
    """
    first = identities[0]
    for other in identities[1:]:
        if (other.form, other.weights_digest) != (first.form, first.weights_digest):
            raise ConfigError(
                f"the engines of {first.component} and {other.component} do not belong together: "
                + "; ".join(
                    part for part in first.differences(other) if part.startswith(("form", "weights_digest"))
                )
            )


def platform_of(tensorrt: TensorRt, device: Device) -> Platform:
    """Where engines would run now."""
    return Platform(tensorrt.version, device.name, device.compute_capability)


def engine_cache(folder: pathlib.Path) -> EngineCache:
    """The engines in vlad's cache folder."""
    return EngineCache(folder / "tensorrt")
