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
    """One component: a context for each of its shapes, bound to the slot and recorded as CUDA graphs.

    Keys that differ in nothing that the component sees share one: TensorRT 8.6 gives a profile to one
    context at a time. A graph belongs to the stream that recorded it, and to its part of the GPU.

    Args:
        engine: of this component; may serve several slots, but only one of them at a time.
        use_graphs: without, every run is enqueued layer by layer.

    Attributes:
        calls: runs for requests so far.
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
        self._work: dict[tuple[_Profile, int], _Work] = {}
        self._graphs: dict[tuple[_Profile, int], Graph] = {}
        self.calls = 0

    def prepare(self, key: ShapeKey, stream: Stream) -> None:
        """Make ready for a shape in a stream: bind, run once, record. The slot holds a request of that shape.

        What the recording needs on the device has to be finished when it begins, so this waits.

        Raises:
            EngineError: where the engine has no such shape, or cannot be run or recorded.
        """
        ready = self._profile(key), stream.handle
        if ready in self._work:
            return
        # Bound anew for each stream: where slots share a context, another one has bound it meanwhile.
        work = self._bind(self._engine.create_context(dict(ready[0]), stream), key)
        work(stream)
        _finish(self._device, stream)
        if self._use_graphs:
            self._graphs[ready] = self._device.capture(stream, lambda: work(stream))
        self._work[ready] = work

    def forget(self, stream: Stream) -> None:
        """Give up what was recorded from a stream. Nothing of it may be in flight."""
        for ready in [ready for ready in self._work if ready[1] == stream.handle]:
            del self._work[ready]
            self._graphs.pop(ready, None)

    def __call__(self, slot: Slot, request_id: int, stream: Stream) -> None:
        """Enqueue a run for the slot's batch; see `vlad_engines.components`.

        A shape that was not prepared is prepared now.

        Raises:
            EngineError: where the slot holds another request; as for `prepare`.
        """
        assert slot is self._slot
        key = slot.require(request_id)
        self.prepare(key, stream)
        ready = self._profile(key), stream.handle
        self.calls += 1
        if self._use_graphs:
            self._graphs[ready].launch(stream)
        else:
            self._work[ready](stream)

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
