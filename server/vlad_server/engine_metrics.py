"""What the engine workers do and need: executions, streams, memory, engines built and loaded."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from vlad_engines.worker_protocol import ComponentEngine, DeviceMemory, StartReport
from vlad_server.latency_histogram import LatencyHistograms
from vlad_server.plain_counters import PlainCounters

BATCH_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
COMPONENTS = ("vision", "prefix", "denoise")
LOOKUPS = ("hit", "miss", "stale", "corrupt", "prebuilt")
START_PHASES = ("load", "warm_up", "fidelity")

_STREAMS = {"vision": ("vision_ms", "prefix_ms"), "action": ("denoise_ms",)}


class EngineMetrics:
    """Figures that come from the workers. Written on the event loop."""

    def __init__(self, registry: CollectorRegistry, namespace: str) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace=namespace, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, namespace=namespace, registry=registry)

        self._batch_size = LatencyHistograms(
            registry, f"{namespace}_batch_size", "Requests computed together.", BATCH_BUCKETS
        ).series[""]
        self._busy = PlainCounters(
            registry,
            f"{namespace}_stream_busy_seconds",
            "Device time by stream: vision and prefix, or denoising. A sum of rates above 1 is overlap.",
            label="stream",
            values=tuple(_STREAMS),
        ).series
        self._overlapped = PlainCounters(
            registry,
            f"{namespace}_overlapped_seconds",
            "Device time in which both streams worked, for different requests.",
        ).series[""]

        self._memory = {
            "used_bytes": gauge("gpu_memory_used_bytes", "Device memory in use, by whomever.", "gpu"),
            "total_bytes": gauge("gpu_memory_total_bytes", "Device memory.", "gpu"),
            "reserved_bytes": gauge(
                "torch_memory_reserved_bytes", "Device memory that the worker's torch keeps.", "gpu"
            ),
        }
        start = gauge(
            "worker_start_duration_seconds", "How long the last start of an engine worker took.", "phase"
        )
        self._start = {phase: start.labels(phase) for phase in START_PHASES}
        lookups = counter(
            "engine_cache_lookups_total", "Engines looked for by starting workers.", "component", "result"
        )
        self._lookups = {
            (component, result): lookups.labels(component, result)
            for component in COMPONENTS
            for result in LOOKUPS
        }
        self._engines = {
            "build_s": gauge(
                "engine_build_duration_seconds", "How long building the engine in use took.", "component"
            ),
            "load_s": gauge(
                "engine_load_duration_seconds", "How long loading the engine in use took.", "component"
            ),
            "plan_bytes": gauge("engine_size_bytes", "Size of the engine's file.", "component"),
        }

    def note_execution(self, batch: int, timing_ms: Mapping[str, float]) -> None:
        """The engine computed `batch` requests together; `timing_ms` is their `policy_timing`."""
        self._batch_size.observe(batch)
        for stream, names in _STREAMS.items():
            self._busy[stream].inc(1e-3 * sum(timing_ms.get(name, 0.0) for name in names))
        self._overlapped.inc(1e-3 * timing_ms.get("overlapped_ms", 0.0))

    def note_memory(self, memory: DeviceMemory) -> None:
        """A worker told of its device's memory."""
        for name, gauge in self._memory.items():
            gauge.labels(memory.device).set(getattr(memory, name))

    def note_start(self, report: StartReport) -> None:
        """A worker became ready."""
        for phase, seconds in report.phase_s.items():
            self._start[phase].set(seconds)
        for component, engine in report.engines.items():
            self._note_engine(component, ComponentEngine(**engine))

    def _note_engine(self, component: str, engine: ComponentEngine) -> None:
        self._lookups[component, engine.lookup].inc()
        for name, gauge in self._engines.items():
            gauge.labels(component).set(getattr(engine, name))
