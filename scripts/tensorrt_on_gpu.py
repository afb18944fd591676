"""Builds engines of a network with random weights on a GPU, and measures them. Steps for two interpreters:

    python3 scripts/tensorrt_on_gpu.py export OUT --layers 2 --vision-layers 2    # torch, onnx
    python3 scripts/tensorrt_on_gpu.py run OUT ENGINES --level 0                  # tensorrt, pycuda, numpy
    python3 scripts/tensorrt_on_gpu.py overlap OUT ENGINES --level 0              # likewise
    python3 scripts/tensorrt_on_gpu.py start OUT ENGINES --level 0                # likewise

The first writes graphs, weights, requests and what the float32 reference makes of them; the second builds (or
finds) the engines, compares every component and the actions with the reference, and prints times and memory.
The third compares `tensorrt_pipelined` with `tensorrt`, chunk by chunk, also under random delays. The fourth
is a start with engines that are there, and its memory. Each writes its result to `--json`, and ends with exit
code 1 where it found something wrong. Full size is `--layers 18 --vision-layers 27`. `--prompt 32` gives one
prompt bucket, and with `--cameras 2` one profile per engine, the fewest minutes.

TensorRT 8.6 needs CUDA_MODULE_LOADING=LAZY, or a build takes ten times as long.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "engines"), str(ROOT / "configs")]

from vlad_configs.models import CAMERA_SLOTS, ModelConfig  # noqa: E402
from vlad_configs.pruning import Positions, PruningMode, pruning_of_options  # noqa: E402
from vlad_engines.backends.capabilities import Trace  # noqa: E402
from vlad_engines.backends.tensorrt.arithmetic import ComponentArithmetic, parse_arithmetic  # noqa: E402
from vlad_engines.backends.tensorrt.manifest import BuildSettings  # noqa: E402
from vlad_engines.export.bundle import read_bundle  # noqa: E402
from vlad_engines.export.spec import COMPONENTS, Component  # noqa: E402
from vlad_engines.processing.model_inputs import ModelInputs  # noqa: E402

Array = npt.NDArray[np.float32]
CASES_FILE = "cases.npz"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a step; returns the exit code, 1 where the engines are too far from the reference."""
    parser = argparse.ArgumentParser(description="TensorRT engines of random weights on this GPU")
    steps = parser.add_subparsers(dest="step", required=True)
    export = steps.add_parser("export", help="write graphs, weights, requests and reference")
    export.add_argument("folder", type=pathlib.Path)
    export.add_argument("--family", choices=("pi05", "pi0"), default="pi05")
    export.add_argument("--layers", type=int, default=18, help="of prefix and expert")
    export.add_argument("--vision-layers", type=int, default=27)
    export.add_argument("--cameras", type=int, default=2)
    export.add_argument("--prompt", type=int, default=32, help="longest prompt in tokens")
    export.add_argument("--horizon", type=int, default=10)
    export.add_argument("--num-steps", type=int, default=10)
    export.add_argument("--precision", default="fp32")
    export.add_argument("--denoise", choices=("step", "unrolled"), default="step")
    export.add_argument("--keep-tokens", type=int, help="token pruning: image tokens that the prefix keeps")
    export.add_argument("--pruning-mode", choices=get_args(PruningMode), default="fixed")
    export.add_argument("--pruning-positions", choices=get_args(Positions), default="original")
    export.add_argument("--device", default="cuda")
    run = steps.add_parser("run", help="build, compare, measure")
    run.add_argument("--least-cosine", type=float, default=0.999)
    overlap = steps.add_parser("overlap", help="keep several requests in flight")
    overlap.add_argument("--delay-mib", type=int, default=64, help="largest copy that delays a stage")
    start = steps.add_parser("start", help="start with engines that are there")
    start.add_argument("--began", type=float, help="Unix time at which the process was started")
    start.add_argument("--most-seconds", type=float, default=15.0, help="until ready")
    for step in (run, overlap, start):
        step.add_argument("folder", type=pathlib.Path)
        step.add_argument("engines", type=pathlib.Path)
        step.add_argument("--precision", default="fp32", help="as exported, or with tf32 for fp32")
        step.add_argument("--level", default="0", help="builder optimisation level, 0 to 5, or one for each")
        step.add_argument("--json", type=pathlib.Path, help="where the result goes")
        step.add_argument("--requests", type=int, default=200)
        step.add_argument("--device", default="cuda")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    functions = {"export": export_network, "run": run_engines, "overlap": run_overlapped, "start": start_once}
    return functions[args.step](args)


# ---- first step ----


def network_config(args: argparse.Namespace) -> ModelConfig:
    """The published network, with fewer layers where asked for."""
    full = ModelConfig(args.family)
    return dataclasses.replace(
        full,
        siglip=dataclasses.replace(full.siglip, depth=args.vision_layers),
        vlm=dataclasses.replace(full.vlm, depth=args.layers),
        expert=dataclasses.replace(full.expert, depth=args.layers),
        action_horizon=args.horizon,
        max_token_len=args.prompt,
    )


def make_cases(config: ModelConfig, cameras: int, seed: int = 0) -> list[tuple[ModelInputs, Array]]:
    """Requests with prompts that are short, middling and as long as can be."""
    random = np.random.default_rng(seed)
    size, longest = config.siglip.image_size, config.max_token_len
    cases = []
    for length in (1, longest // 2, longest):
        # Blurred noise: like a picture, neighbouring patches differ.
        coarse = random.integers(0, 256, (cameras, size // 14, size // 14, 3))
        inputs = ModelInputs(
            cameras=CAMERA_SLOTS[:cameras],
            images=np.kron(coarse, np.ones((1, 14, 14, 1), np.int64)).astype(np.uint8),
            tokens=random.integers(0, config.vocab_size, longest),
            token_mask=np.arange(longest) < length,
            state=random.standard_normal(config.action_dim),
            robot_state=np.zeros(0),
        )
        noise = random.standard_normal((config.action_horizon, config.action_dim), np.float32)
        cases.append((inputs, noise))
    return cases


def export_network(args: argparse.Namespace) -> int:
    """Write everything that the second step needs."""
    from vlad_engines.checkpoint.random_weights import RandomWeights
    from vlad_engines.export.exporter import export_bundle
    from vlad_engines.fidelity.reference import strict_float32, trace_model
    from vlad_engines.float8.calibrator import Calibrator
    from vlad_engines.model.pi0 import Pi0

    config = network_config(args)
    weights = RandomWeights(config, args.device)
    began = time.monotonic()
    pruning = pruning_of_options(args.keep_tokens, None, args.pruning_mode, args.pruning_positions)
    form = parse_arithmetic(args.precision).form(args.num_steps, args.denoise, pruning)
    calibration = None
    if form.prefix_float8:
        # With other requests than those that the engines are compared with.
        others = [inputs for inputs, _ in make_cases(config, args.cameras, seed=1)]
        calibration = Calibrator(config, weights, others, args.device)()
    export_bundle(config, weights, form, args.folder, _say, calibration)
    print(f"exported in {time.monotonic() - began:.0f} s", flush=True)
    arrays: dict[str, Any] = {}
    with strict_float32():
        model = Pi0.from_openpi_weights(config, weights, "fp32", args.device)
        for index, (inputs, noise) in enumerate(make_cases(config, args.cameras)):
            trace = trace_model(model, inputs, noise, args.num_steps, pruning)
            for name in ("images", "tokens", "token_mask", "state"):
                arrays[f"{index}.{name}"] = getattr(inputs, name)
            arrays[f"{index}.noise"] = noise
            for field in dataclasses.fields(Trace):
                arrays[f"{index}.{field.name}"] = getattr(trace, field.name)
    np.savez(args.folder / CASES_FILE, **arrays)
    print(f"reference of {index + 1} requests written to {args.folder / CASES_FILE}", flush=True)
    return 0


# ---- second step ----


def read_cases(folder: pathlib.Path) -> list[tuple[ModelInputs, Array, Trace]]:
    """What `export_network` wrote."""
    with np.load(folder / CASES_FILE) as arrays:
        count = 1 + max(int(name.partition(".")[0]) for name in arrays)
        cases = []
        for index in range(count):
            images = arrays[f"{index}.images"]
            inputs = ModelInputs(
                cameras=CAMERA_SLOTS[: len(images)],
                images=images,
                tokens=arrays[f"{index}.tokens"],
                token_mask=arrays[f"{index}.token_mask"],
                state=arrays[f"{index}.state"],
                robot_state=np.zeros(0),
            )
            parts = {field.name: arrays[f"{index}.{field.name}"] for field in dataclasses.fields(Trace)}
            cases.append((inputs, arrays[f"{index}.noise"], Trace(**parts)))
    return cases


def run_engines(args: argparse.Namespace) -> int:
    """Build or find the engines, then compare and measure."""
    from vlad_engines.backends.tensorrt.api import load_tensorrt
    from vlad_engines.backends.tensorrt.cuda_device import open_device

    cases = read_cases(args.folder)
    tensorrt = load_tensorrt()
    arithmetic = parse_arithmetic(args.precision)
    tensorrt.check_arithmetic(arithmetic)
    device = open_device(args.device)
    arithmetic.check_gpu(device.name, device.compute_capability)
    print(f"TensorRT {tensorrt.version} on {device.name} {device.compute_capability}", flush=True)
    result: dict[str, Any] = {
        "tensorrt": tensorrt.version,
        "device": device.name,
        "precision": dataclasses.asdict(arithmetic),
        "level": args.level,
        "model": read_bundle(args.folder).model.to_json(),
        "form": read_bundle(args.folder).form.to_json(),
        "starts": {},
        "latency_ms": {},
    }
    passed = True
    for name, use_graphs in (("first", True), ("second", True), ("without graphs", False)):
        with device.active():
            free = device.free_bytes()
        began = time.monotonic()
        backend = make_backend(args, arithmetic, tensorrt, device, use_graphs, len(cases[0][0].cameras))
        backend.warm_up(_say)
        with device.active():
            used = free - device.free_bytes()
        result["starts"][name] = {
            "ready_s": round(time.monotonic() - began, 1),
            "device_mib": used >> 20,
        }
        print(f"{name} start: {result['starts'][name]}", flush=True)
        if name == "first":
            result["fidelity"], passed = compare(backend, cases, args.least_cosine)
            result["repeatable"] = is_repeatable(backend, cases)
            print(f"same request, same bits: {result['repeatable']}", flush=True)
            passed = passed and bool(result["repeatable"])
            result["layer_types"] = write_layer_reports(backend, args.folder)
        else:
            result["latency_ms"][name] = measure(backend, cases[-1], args.requests)
        backend.close()
    result["engines"] = describe_engines(args.engines)
    return conclude(args, result, passed)


def conclude(args: argparse.Namespace, result: dict[str, Any], passed: bool) -> int:
    """Write the result and say how it went; returns the exit code."""
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print("passed" if passed else "FAILED", flush=True)
    return 0 if passed else 1


def make_backend(
    args: argparse.Namespace,
    arithmetic: ComponentArithmetic,
    tensorrt: Any,
    device: Any,
    use_graphs: bool,
    cameras: int,
) -> Any:
    """The sequential backend over the exported graphs."""
    from vlad_engines.backends.tensorrt.backend import TensorRtBackend

    parts = backend_parts(args, cameras)
    return TensorRtBackend(parts[0], parts[1], arithmetic, tensorrt, device, parts[2], use_graphs)


def backend_parts(args: argparse.Namespace, cameras: int) -> tuple[ModelConfig, Any, Any]:
    """Network, options and plans of the exported graphs."""
    from vlad_engines.backends.base import BackendOptions
    from vlad_engines.backends.tensorrt.cache import EngineCache
    from vlad_engines.backends.tensorrt.engine_plans import BuiltPlans
    from vlad_engines.backends.tensorrt.graph_source import BundleGraphs

    bundle = read_bundle(args.folder)
    options = BackendOptions(
        bundle.form.num_steps,
        args.precision,
        args.device,
        camera_counts=(cameras,),
        engine_dir=str(args.engines),
        pruning=bundle.form.pruning,
    )
    plans = BuiltPlans(EngineCache(args.engines), BundleGraphs(bundle), levels(args.level))
    return bundle.model, options, plans


def levels(text: str) -> dict[Component, BuildSettings]:
    """Read `0`, or `vision=0,prefix=0,denoise=2`."""
    if "=" not in text:
        return {component: BuildSettings(int(text)) for component in COMPONENTS}
    named = dict(part.split("=") for part in text.split(","))
    return {component: BuildSettings(int(named[component])) for component in COMPONENTS}


def compare(
    backend: Any, cases: Sequence[tuple[ModelInputs, Array, Trace]], least_cosine: float
) -> tuple[dict[str, dict[str, float]], bool]:
    """Every component and the whole loop against the float32 reference; the worst request counts."""
    figures: dict[str, dict[str, float]] = {}
    for inputs, noise, reference in cases:
        trace = backend.trace(inputs, noise)
        pairs = {
            "vision_tokens": (trace.vision_tokens[None], reference.vision_tokens[None]),
            "prefix_keys": (trace.prefix_keys, reference.prefix_keys),
            "prefix_values": (trace.prefix_values, reference.prefix_values),
            "x_t": (trace.x_t, reference.x_t),
            "actions minus noise": (trace.x_t[-1:] - noise, reference.x_t[-1:] - noise),
        }
        for name, (mine, theirs) in pairs.items():
            entry = figures.setdefault(name, {"cosine": 1.0, "max_abs": 0.0})
            rows = zip(mine.reshape(len(mine), -1), theirs.reshape(len(theirs), -1), strict=True)
            entry["cosine"] = min(entry["cosine"], *(cosine(left, right) for left, right in rows))
            entry["max_abs"] = max(entry["max_abs"], float(np.abs(mine - theirs).max()))
    for name, entry in figures.items():
        print(f"{name:<20} 1 - cosine {1 - entry['cosine']:.2e}   max abs {entry['max_abs']:.3g}", flush=True)
    return figures, all(entry["cosine"] >= least_cosine for entry in figures.values())


def cosine(left: Array, right: Array) -> float:
    """In float64; NaN counts as no likeness at all."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    value = float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))
    return value if np.isfinite(value) else -1.0


def is_repeatable(backend: Any, cases: Sequence[tuple[ModelInputs, Array, Trace]]) -> bool:
    """Whether requests give the same bits again after others."""
    rounds = [[backend.infer(inputs, noise).actions for inputs, noise, _ in cases] for _ in range(3)]
    return all(
        np.array_equal(first, again)
        for later in rounds[1:]
        for first, again in zip(rounds[0], later, strict=True)
    )


def measure(backend: Any, case: tuple[ModelInputs, Array, Trace], requests: int) -> dict[str, Any]:
    """Milliseconds of one request after the other: on the host's clock, and on the device per component."""
    inputs, noise, _ = case
    wall, stages = [], []
    for _ in range(requests):
        began = time.perf_counter()
        result = backend.infer(inputs, noise)
        wall.append(time.perf_counter() - began)
        stages.append([result.stage_seconds[component] for component in COMPONENTS])
    figures: dict[str, Any] = {
        "wall": {f"p{rank}": round(1e3 * float(np.percentile(wall, rank)), 3) for rank in (50, 95, 99)},
        **dict(zip(COMPONENTS, (1e3 * np.median(stages, axis=0)).round(3).tolist(), strict=True)),
    }
    print(figures, flush=True)
    return figures


def write_layer_reports(backend: Any, folder: pathlib.Path) -> dict[str, dict[str, int]]:
    """Keep what TensorRT made of the layers; returns how many tensors have which type and format."""
    types = {}
    for component, report in backend.layer_reports().items():
        (folder / f"{component}-layers.json").write_text(report, "utf-8")
        found = re.findall(r'"Format/Datatype"\s*:\s*"([^"]*)"', report)
        types[component] = dict(collections.Counter(found).most_common())
    print(types, flush=True)
    return types


def describe_engines(folder: pathlib.Path) -> dict[str, Any]:
    """Size and build time from the manifests."""
    manifests = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*-*.json"))]
    return {
        manifest["identity"]["component"]: {
            "plan_mib": manifest["plan_bytes"] >> 20,
            "build_s": manifest["build_seconds"],
        }
        for manifest in manifests
        if "identity" in manifest
    }


# ---- third step ----


def run_overlapped(args: argparse.Namespace) -> int:
    """Serve requests one after the other and overlapped; every chunk must be that of a lone request."""
    from vlad_engines.backends.tensorrt.api import load_tensorrt
    from vlad_engines.backends.tensorrt.cuda_device import open_device
    from vlad_engines.backends.tensorrt_pipelined.backend import PipelinedTensorRtBackend
    from vlad_engines.bench.in_flight import measure as serve

    requests = make_requests(read_cases(args.folder))
    cameras = len(requests[0][0].cameras)
    tensorrt, device, arithmetic = load_tensorrt(), open_device(args.device), parse_arithmetic(args.precision)
    model, options, plans = backend_parts(args, cameras)
    twin = make_backend(args, arithmetic, tensorrt, device, True, cameras)
    pipelined = PipelinedTensorRtBackend(model, options, arithmetic, tensorrt, device, plans)
    for backend in (twin, pipelined):
        backend.warm_up(_say)
    expected = [twin.infer(*request).actions.tobytes() for request in requests]
    rows = []
    # The twin once more at the end: a GPU that has become slower or faster meanwhile would show.
    for name, backend, count in (
        ("tensorrt", twin, 1),
        *(("tensorrt_pipelined", pipelined, count) for count in (1, 2, 3)),
        ("tensorrt", twin, 1),
        ("tensorrt_pipelined", pipelined, 2),
    ):
        serve(name, backend, requests, expected, max(1, args.requests // 10), count)
        rows.append(dataclasses.asdict(serve(name, backend, requests, expected, args.requests, count)))
        print(json.dumps(rows[-1]), flush=True)
    ratios = compare_rows(rows)
    print(json.dumps(ratios), flush=True)
    ragged = serve_raggedly(pipelined, requests, expected, args.requests)
    print(f"requests at random times: {ragged} of {args.requests} chunks differ", flush=True)
    delay_stages(pipelined, device, args.delay_mib << 20)
    delayed = serve_raggedly(pipelined, requests, expected, args.requests)
    print(f"stages delayed at random too: {delayed} of {args.requests} chunks differ", flush=True)
    result = {
        "tensorrt": tensorrt.version,
        "device": device.name,
        "precision": dataclasses.asdict(arithmetic),
        "level": args.level,
        "rows": rows,
        **ratios,
        "spared_multiprocessors": pipelined.spared,
        "calls": dict(pipelined.calls),
        "wrong_chunks_at_random_times": ragged,
        "wrong_chunks_with_delayed_stages": delayed,
    }
    for backend in (pipelined, twin):
        backend.close()
    return conclude(args, result, not ragged and not delayed and all(row["same_chunks"] for row in rows))


def compare_rows(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Overlapped against sequential, each time against the better of the sequential rows."""

    def best(name: str, in_flight: int, figure: str, choose: Any) -> float:
        fitting = [row for row in rows if (row["backend"], row["in_flight"]) == (name, in_flight)]
        return float(choose(row[figure] for row in fitting))

    rate = best("tensorrt", 1, "requests_per_s", max)
    return {
        "throughput_2_in_flight": round(best("tensorrt_pipelined", 2, "requests_per_s", min) / rate, 3),
        "throughput_3_in_flight": round(best("tensorrt_pipelined", 3, "requests_per_s", min) / rate, 3),
        "lone_latency": round(
            best("tensorrt_pipelined", 1, "p50_ms", max) / best("tensorrt", 1, "p50_ms", min), 3
        ),
    }


def delay_stages(backend: Any, device: Any, largest_bytes: int) -> None:
    """Put copies of random size before every stage of every lane: streams drift against each other."""
    random = np.random.default_rng(3)
    with device.active():
        source, target = (
            device.host_array((largest_bytes,), np.dtype(np.uint8)),
            device.allocate(largest_bytes),
        )

    def delayed(stage: Any) -> Any:
        def run(request_id: int, stream: Any) -> None:
            assert target.address
            for _ in range(random.integers(0, 4)):
                device.upload(target.address, source[: random.integers(1, largest_bytes)], stream)
            stage(request_id, stream)

        return run

    for lane in backend._lanes:
        for name in ("vision", "prefix", "denoise"):
            setattr(lane, name, delayed(getattr(lane, name)))


def make_requests(cases: Sequence[tuple[ModelInputs, Array, Trace]]) -> list[tuple[ModelInputs, Array]]:
    """Eight different requests: the exported ones, and again with other noise."""
    random = np.random.default_rng(1)
    requests = [(inputs, noise) for inputs, noise, _ in cases]
    while len(requests) < 8:
        inputs, noise = requests[-len(cases)]
        requests.append((inputs, random.standard_normal(noise.shape, np.float32)))
    return requests


def serve_raggedly(
    backend: Any, requests: Sequence[tuple[ModelInputs, Array]], expected: Sequence[bytes], count: int
) -> int:
    """Hand requests over at random times, so that stages meet in ever new ways; returns the wrong chunks."""
    random = np.random.default_rng(2)
    flights = []
    for number in range(count):
        time.sleep(float(random.exponential(0.01)))
        flights.append((number % len(requests), backend.start(*requests[number % len(requests)])))
    return sum(future.result().actions.tobytes() != expected[index] for index, future in flights)


# ---- fourth step ----


def start_once(args: argparse.Namespace) -> int:
    """Start the overlapped backend with engines that are there, as a daemon does after a restart."""
    began = time.time() if args.began is None else args.began
    from vlad_engines.backends.tensorrt.api import load_tensorrt
    from vlad_engines.backends.tensorrt.cuda_device import open_device
    from vlad_engines.backends.tensorrt_pipelined.backend import PipelinedTensorRtBackend

    (inputs, noise, _), *_ = read_cases(args.folder)
    tensorrt, device, arithmetic = load_tensorrt(), open_device(args.device), parse_arithmetic(args.precision)
    with device.active():
        free = device.free_bytes()
    model, options, plans = backend_parts(args, len(inputs.cameras))
    backend = PipelinedTensorRtBackend(model, options, arithmetic, tensorrt, device, plans)
    backend.warm_up(_say)
    ready_s = time.time() - began
    first = time.perf_counter()
    backend.infer(inputs, noise)
    with device.active():
        used = free - device.free_bytes()
    result = {
        "ready_s": round(ready_s, 2),
        "first_request_ms": round(1e3 * (time.perf_counter() - first), 2),
        "device_mib": used >> 20,
        "host_mib": {name: host_memory(name) >> 20 for name in ("VmRSS", "RssAnon", "RssFile")},
        "imported_torch": "torch" in sys.modules,
    }
    print(json.dumps(result), flush=True)
    backend.close()
    return conclude(args, result, ready_s <= args.most_seconds)


def host_memory(name: str) -> int:
    """Bytes of this process, by the name that the kernel gives the figure."""
    status = pathlib.Path("/proc/self/status").read_text("utf-8")
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _say(stage: str, fraction: float) -> None:
    print(f"{time.strftime('%H:%M:%S')} {100 * fraction:3.0f} %  {stage}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
