"""The three components over one slot. Every call names its stream, so a schedule may use several."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vlad_engines.backends.tensorrt.device import Device, Graph, Stream
from vlad_engines.backends.tensorrt.loaded_engine import BoundContext, LoadedEngine
from vlad_engines.backends.tensorrt.slot import Slot
from vlad_engines.export.spec import COMPONENTS, Component, GraphSpec, ShapeKey, graph_spec, input_shapes

_Work = Callable[[Stream], None]
_Profile = tuple[tuple[str, tuple[int, ...]], ...]


class EngineComponent:
    """One component: a context for each of its shapes, bound to the slot once and recorded as a CUDA graph.

    Keys that differ in nothing that the component sees share one: TensorRT 8.6 gives a profile to one
    context at a time.

    Args:
        engine: of this component; may serve several slots, but only one of them at a time.
        use_graphs: without, every run is enqueued layer by layer.
    """

    def __init__(self, engine: LoadedEngine, device: Device, slot: Slot, use_graphs: bool) -> None:
        identity = engine.manifest.identity
        self._component: Component = identity.component
        self._config, self._form = identity.model, identity.form
        self._spec: GraphSpec = graph_spec(identity.component, identity.model, identity.form)
        self._engine = engine
        self._device = device
        self._slot = slot
        self._use_graphs = use_graphs
        self._profiles: dict[ShapeKey, _Profile] = {}
        self._work: dict[_Profile, _Work] = {}
        self._graphs: dict[_Profile, Graph] = {}

    def prepare(self, key: ShapeKey, stream: Stream) -> None:
        """Make ready for a shape: create, bind, run once, record. The slot holds a request of that shape.

        What the recording needs on the device has to be finished when it begins, so this waits.

        Raises:
            EngineError: where the engine has no such shape, or cannot be run or recorded.
        """
        profile = self._profile(key)
        if profile in self._work:
            return
        work = self._bind(self._engine.create_context(dict(profile), stream), key)
        work(stream)
        _finish(self._device, stream)
        if self._use_graphs:
            self._graphs[profile] = self._device.capture(stream, lambda: work(stream))
        self._work[profile] = work

    def __call__(self, slot: Slot, request_id: int, stream: Stream) -> None:
        """Enqueue a run for the slot's batch; see `vlad_engines.components`.

        A shape that was not prepared is prepared now.

        Raises:
            EngineError: where the slot holds another request; as for `prepare`.
        """
        assert slot is self._slot
        key = slot.require(request_id)
        self.prepare(key, stream)
        profile = self._profile(key)
        if self._use_graphs:
            self._graphs[profile].launch(stream)
        else:
            self._work[profile](stream)

    def _profile(self, key: ShapeKey) -> _Profile:
        if key not in self._profiles:
            shapes = input_shapes(self._component, self._config, self._form, key)
            self._profiles[key] = tuple(shapes.items())
        return self._profiles[key]

    def _bind(self, context: BoundContext, key: ShapeKey) -> _Work:
        slot, names = self._slot, [tensor.name for tensor in (*self._spec.inputs, *self._spec.outputs)]
        steps = self._form.num_steps
        for name in names:
            if name not in ("x_t", "x_next", "x_path", "step"):
                context.bind(name, slot.address(name))
        if "step" not in names:
            bound = {"x_t": slot.x_address(key, 0), "x_path": slot.x_address(key, 1)}
            for name, address in bound.items():
                if name in names:
                    context.bind(name, address)
            return context.enqueue

        def every_step(stream: Stream) -> None:
            for step in range(steps):
                context.bind("step", slot.step_address(step))
                context.bind("x_t", slot.x_address(key, step))
                context.bind("x_next", slot.x_address(key, step + 1))
                context.enqueue(stream)

        return every_step


def make_components(
    engines: Mapping[Component, LoadedEngine], device: Device, slot: Slot, use_graphs: bool
) -> dict[Component, EngineComponent]:
    """All components over one slot, in their order."""
    return {
        component: EngineComponent(engines[component], device, slot, use_graphs) for component in COMPONENTS
    }


def _finish(device: Device, stream: Stream) -> None:
    done = device.create_event()
    done.record(stream)
    done.synchronize()
