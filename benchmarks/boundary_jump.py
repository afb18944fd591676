"""How far the robot jumps where a new chunk takes over, with and without real-time chunking, and its cost.

Run from the repository root: `python -m benchmarks.boundary_jump --checkpoint random:pi0 --backend triton
[--modes guided_identity] [--out FILE.json] [--plot FILE.png]`. The jump is the distance between the first
new action that is executed and what the old chunk had for the same control step: L2 over the robot's
columns, in its own units. The new chunk is computed from another observation and another noise.

The weights are random, and such a network hardly changes its noise: chunks drawn from white noise would be
no trajectories. The noise is therefore smooth along the chunk, with the usual spread in each action.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.run_facts import run_facts
from tests.support.libero import libero_observation
from vlad_configs.rtc import ChunkContinuation
from vlad_engines.unified_policy import UnifiedPolicy

DELAYS = range(1, 9)
EXECUTED = 10
"""Actions of the old chunk that were executed when the new observation is taken."""

KNOTS = 6
STAGES = ("vision_ms", "prefix_ms", "denoise_ms")


def smooth_noise(random: np.random.Generator, horizon: int, width: int) -> npt.NDArray[np.float32]:
    """Noise `[horizon, width]` of mean 0 and variance 1 everywhere that changes slowly along a chunk."""
    knots = random.standard_normal((KNOTS, width))
    position = np.linspace(0, KNOTS - 1, horizon)
    left = np.minimum(position.astype(int), KNOTS - 2)
    share = (position - left)[:, None]
    # Cosine and sine, so that the sum of two independent numbers keeps its variance on the way.
    mixed = np.cos(share * np.pi / 2) * knots[left] + np.sin(share * np.pi / 2) * knots[left + 1]
    smooth: npt.NDArray[np.float32] = mixed.astype(np.float32)
    return smooth


class Seams:
    """Old chunks and the new ones that take over from them.

    Args:
        policy: with a horizon of more than `EXECUTED` + the longest delay.
    """

    def __init__(self, policy: UnifiedPolicy, seed: int) -> None:
        self._policy = policy
        self._random = np.random.default_rng(seed)
        self._shape = (policy.contract.model.action_horizon, policy.contract.model.action_dim)
        self._seed = 2 * seed
        self.example: dict[str, npt.NDArray[np.float64]] = {}
        self.device_ms: dict[str, list[float]] = {}

    def measure(self, modes: list[str]) -> list[dict[str, Any]]:
        """The jump of one seam for each delay, plain and in each mode."""
        self._seed += 2
        old_noise, new_noise = (smooth_noise(self._random, *self._shape) for _ in range(2))
        old = self._policy.infer(libero_observation(self._seed), noise=old_noise)
        observation = libero_observation(self._seed + 1)
        rows = []
        for delay in DELAYS:
            row: dict[str, Any] = {"delay": delay}
            due = old["actions"][EXECUTED + delay]
            for mode in ("off", *modes):
                continuation = ChunkContinuation(
                    delay,
                    model_actions=old["model_actions"][EXECUTED:],
                    anchor_state=old["anchor_state"],
                    mode=mode,  # type: ignore[arg-type]
                )
                new = self._policy.infer(observation, noise=new_noise, chunk_continuation=continuation)
                if new["rtc"]["mode"] != mode:
                    raise RuntimeError(f"asked for {mode}, got {new['rtc']}")
                row[mode] = float(np.linalg.norm(new["actions"][delay] - due))
                total = sum(new["policy_timing"][stage] for stage in STAGES)
                self.device_ms.setdefault(mode, []).append(total)
                if delay == DELAYS[len(DELAYS) // 2]:
                    self.example = {**self.example, "old": old["actions"], mode: new["actions"]}
            rows.append(row)
        return rows


def summary(rows: list[dict[str, Any]], modes: list[str]) -> list[dict[str, Any]]:
    """Median jumps by delay, and by how much each mode makes them smaller."""
    result = []
    for delay in DELAYS:
        jumps = {m: np.median([row[m] for row in rows if row["delay"] == delay]) for m in ("off", *modes)}
        result.append(
            {
                "delay": delay,
                "plain": round(float(jumps["off"]), 5),
                **{mode: round(float(jumps[mode]), 5) for mode in modes},
                **{f"{mode}_times_smaller": round(float(jumps["off"] / jumps[mode]), 1) for mode in modes},
            }
        )
    return result


def draw(
    path: pathlib.Path, table: list[dict[str, Any]], example: dict[str, Any], modes: list[str], title: str
) -> None:
    """Jumps against the delay, and one seam."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    colours = dict(zip(("plain", *modes), ("#D55E00", "#0072B2", "#009E73"), strict=False))
    delays = [row["delay"] for row in table]
    for name, colour in colours.items():
        left.semilogy(delays, [row[name] for row in table], "o-", color=colour, label=name)
    left.semilogy(delays, [row["plain"] / 5 for row in table], "k:", lw=1, label="a fifth of plain")
    left.set(xlabel="delay, control steps", ylabel="jump, L2 over the robot's columns (median)")
    left.legend()
    delay, column = DELAYS[len(DELAYS) // 2], 0
    seam = EXECUTED + delay
    right.plot(example["old"][:, column], color="0.6", lw=3, label="old chunk")
    for name, colour in colours.items():
        chunk = example["off" if name == "plain" else name][:, column]
        steps = np.arange(EXECUTED, EXECUTED + len(chunk))
        right.plot(steps[:delay], chunk[:delay], ":", color=colour, lw=1)
        right.plot(steps[delay:], chunk[delay:], color=colour, label=f"new chunk, {name}")
    right.axvline(seam, color="k", lw=0.8)
    right.set(xlabel=f"control step (takes over at {seam})", ylabel=f"action, column {column}")
    right.legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="random:pi0_dummy", help="checkpoint, or random weights")
    parser.add_argument("--backend", default="pytorch")
    parser.add_argument("--precision", default=None, help="default: the backend's")
    parser.add_argument("--modes", default="guided_identity", help="comma-separated")
    parser.add_argument("--seams", type=int, default=10, help="old chunks; each is continued at every delay")
    parser.add_argument("--out", type=pathlib.Path, help="write the result as JSON")
    parser.add_argument("--plot", type=pathlib.Path, help="write a PNG")
    args = parser.parse_args()
    modes = args.modes.split(",")
    policy = UnifiedPolicy(args.checkpoint, args.backend, env="LIBERO", precision=args.precision)
    policy.warm_up()
    seams = Seams(policy, seed=0)
    if (horizon := policy.contract.model.action_horizon) <= EXECUTED + max(DELAYS):
        parser.error(f"{args.checkpoint} has a horizon of {horizon}; this needs one of 50, such as pi0's")
    seams.measure(modes)
    seams.device_ms.clear()
    rows = [row for _ in range(args.seams) for row in seams.measure(modes)]
    table = summary(rows, modes)
    device_ms = {mode: float(np.median(values)) for mode, values in seams.device_ms.items()}
    result = {
        **run_facts(),
        "checkpoint": args.checkpoint,
        "backend": args.backend,
        "precision": policy.metadata["precision"],
        "horizon": horizon,
        "seams": args.seams,
        "jump": table,
        "least_times_smaller": {m: min(row[f"{m}_times_smaller"] for row in table) for m in modes},
        # Vision, prefix and denoising of the same requests, in turn with the plain ones.
        "device_ms": {mode: round(value, 4) for mode, value in device_ms.items()},
        "device_ms_over_plain": {mode: round(device_ms[mode] / device_ms["off"], 4) for mode in modes},
    }
    policy.close()
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        title = f"{args.checkpoint}, {args.backend}, {result['precision']}, horizon {horizon}"
        draw(args.plot, table, seams.example, modes, title)


if __name__ == "__main__":
    main()
