"""An engine in device memory, and its contexts: one per shape, bound to the memory that they work in."""

from __future__ import annotations

from collections.abc import Mapping

from vlad_configs.errors import EngineError
from vlad_engines.backends.tensorrt.api import TensorRt
from vlad_engines.backends.tensorrt.bindings import ExecutionContext
from vlad_engines.backends.tensorrt.cache import Plan
from vlad_engines.backends.tensorrt.device import Device, Stream
from vlad_engines.backends.tensorrt.manifest import EngineManifest
from vlad_engines.export.spec import graph_spec


class LoadedEngine:
    """One component's engine. Its contexts share scratch memory, so only one of them may run at a time.

    Args:
        plan: checked by the cache.

    Raises:
        EngineError: where TensorRT refuses the plan, or the engine is not what its manifest says.
    """

    def __init__(self, tensorrt: TensorRt, device: Device, plan: Plan) -> None:
        self.manifest: EngineManifest = plan.manifest
        self._tensorrt = tensorrt
        self._engine = tensorrt.load_engine(plan.content)
        self._check()
        self._scratch_bytes = tensorrt.scratch_bytes(self._engine)
        self._scratch = device.allocate(self._scratch_bytes)

    @property
    def device_bytes(self) -> int:
        """Scratch memory, without the weights."""
        return self._scratch_bytes

    def create_context(self, shapes: Mapping[str, tuple[int, ...]], stream: Stream) -> BoundContext:
        """A context for one of the engine's profiles.

        Args:
            shapes: of all inputs.
            stream: in which the switch to the profile is enqueued; later runs must come after it.

        Raises:
            EngineError: for shapes without a profile.
        """
        profiles = self.manifest.identity.profiles
        if dict(shapes) not in profiles:
            component = self.manifest.identity.component
            raise EngineError(f"the {component} engine has no profile for {dict(shapes)}; it has {profiles}")
        context = self._tensorrt.create_context(self._engine, self._scratch.address, self._scratch_bytes)
        if not context.set_optimization_profile_async(profiles.index(dict(shapes)), stream.handle):
            raise EngineError(f"TensorRT cannot switch to the profile of {dict(shapes)}")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"TensorRT refuses the shape {shape} for '{name}'")
        return BoundContext(self, context)

    def layer_report(self) -> str:
        """What TensorRT made of the layers, as JSON."""
        return self._tensorrt.layer_report(self._engine)

    def _check(self) -> None:
        """Names, directions, dtypes and profiles must be those of the manifest; nothing is bound by luck."""
        identity, engine = self.manifest.identity, self._engine
        spec = graph_spec(identity.component, identity.model, identity.form)
        expected = {tensor.name: (True, tensor.dtype) for tensor in spec.inputs}
        expected |= {tensor.name: (False, tensor.dtype) for tensor in spec.outputs}
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (self._tensorrt.is_input(engine, name), self._tensorrt.dtype(engine, name))
            for name in names
        }
        if found != expected:
            raise EngineError(
                f"the {identity.component} engine has the tensors {found}, its manifest says {expected}"
            )
        if engine.num_optimization_profiles != len(identity.profiles):
            raise EngineError(
                f"the {identity.component} engine has {engine.num_optimization_profiles} profiles, its "
                f"manifest says {len(identity.profiles)}"
            )
        varying = {
            tensor.name for tensor in spec.inputs if any(isinstance(axis, str) for axis in tensor.shape)
        }
        for index, profile in enumerate(identity.profiles):
            for name in varying:
                bounds = {tuple(bound) for bound in engine.get_tensor_profile_shape(name, index)}
                if bounds != {profile[name]}:
                    raise EngineError(
                        f"profile {index} of the {identity.component} engine runs '{name}' in {bounds}, its "
                        f"manifest says {profile[name]}"
                    )


class BoundContext:
    """A context with its shapes set. `engine` must outlive it."""

    def __init__(self, engine: LoadedEngine, context: ExecutionContext) -> None:
        self._engine = engine
        self._context = context

    def bind(self, tensor: str, address: int) -> None:
        """Let a tensor live at an address from the next run on.

        Raises:
            EngineError: where TensorRT refuses it.
        """
        if not self._context.set_tensor_address(tensor, address):
            raise EngineError(f"TensorRT refuses address {address:#x} for '{tensor}'")

    def enqueue(self, stream: Stream) -> None:
        """Enqueue one run; returns at once.

        Raises:
            EngineError: where TensorRT cannot; its log says why.
        """
        if not self._context.execute_async_v3(stream.handle):
            component = self._engine.manifest.identity.component
            raise EngineError(f"TensorRT cannot run the {component} engine; the log says why")
