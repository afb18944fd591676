"""What JPEG costs in accuracy and saves in bytes, on recorded robot images.

    python scripts/image_encoding_cost.py --out docs/results/image-encoding.json

Each recorded LIBERO observation is answered with raw images and with encoded ones, from the same noise,
so that the images alone make the difference. Beside them stands what the images of another observation
do to the same chunk, and what other noise does: without that scale the figures would say nothing.
With random weights the differences show how far the pixels reach into the actions of such a network, not what
a trained robot would do.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
from PIL import Image

from vlad_client.image_encoding import ImageEncoder
from vlad_engines.unified_policy import UnifiedPolicy

ROOT = pathlib.Path(__file__).resolve().parents[1]
OBSERVATIONS = ROOT / "examples" / "data" / "libero_observations.npz"
IMAGE_KEYS = ("observation/image", "observation/wrist_image")
ENCODERS = {
    "png": ImageEncoder("png"),
    **{f"jpeg q{quality}": ImageEncoder("jpeg", quality) for quality in (95, 90, 80, 50)},
}


def main() -> int:
    """Measure, print the table, write the figures."""
    args = _parse()
    observations = _load_observations()
    policy = UnifiedPolicy(args.checkpoint, env="LIBERO", device="cpu", precision="fp32")
    raw = [_actions(policy, observation, seed) for seed, observation in enumerate(observations)]
    other_noise = [
        _actions(policy, observation, seed + len(raw)) for seed, observation in enumerate(observations)
    ]
    other_images = [
        _actions(policy, _with_images(observation, observations[seed - 1]), seed)
        for seed, observation in enumerate(observations)
    ]
    deviation = np.std(np.concatenate(raw), axis=0)
    rows = [_raw_row(observations)]
    rows += [_row(name, encoder, policy, observations, raw, deviation) for name, encoder in ENCODERS.items()]
    rows.append({"images": "other images", **_errors(raw, other_images, deviation)})
    rows.append({"images": "other noise", **_errors(raw, other_noise, deviation)})
    report = {
        "checkpoint": policy.metadata["checkpoint"],
        "weights": policy.metadata["weights"],
        "observations": len(observations),
        "images": f"{2 * len(observations)} of 224 x 224",
        "pillow": PIL.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "rows": rows,
    }
    policy.close()
    print(_table(rows))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what encoded images cost and save.")
    parser.add_argument("--checkpoint", default="demo", help="as for serve_policy, of a LIBERO policy")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for the figures")
    return parser.parse_args()


def _load_observations() -> list[dict[str, Any]]:
    with np.load(OBSERVATIONS) as recorded:
        return [
            {
                "observation/image": recorded["image"][n],
                "observation/wrist_image": recorded["wrist_image"][n],
                "observation/state": recorded["state"][n],
                "prompt": str(recorded["prompt"][n]),
            }
            for n in range(len(recorded["image"]))
        ]


def _with_images(observation: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {**observation, **{key: other[key] for key in IMAGE_KEYS}}


def _actions(policy: UnifiedPolicy, observation: dict[str, Any], seed: int) -> Any:
    return policy.infer(observation, seed=seed)["actions"]


def _raw_row(observations: list[dict[str, Any]]) -> dict[str, Any]:
    size = sum(observation[key].nbytes for observation in observations for key in IMAGE_KEYS)
    return {"images": "raw", "kib_per_image": size / (len(observations) * len(IMAGE_KEYS) * 1024)}


def _row(
    name: str,
    encoder: ImageEncoder,
    policy: UnifiedPolicy,
    observations: list[dict[str, Any]],
    raw: list[Any],
    deviation: Any,
) -> dict[str, Any]:
    encoded, encode_ms = _timed(encoder.encode, observations)
    decoded, decode_ms = _timed(_decode, encoded)
    images = len(observations) * len(IMAGE_KEYS)
    size = sum(len(observation[key]["data"]) for observation in encoded for key in IMAGE_KEYS)
    pairs = zip(observations, decoded, strict=True)
    squares = [_squared_error(before[key], after[key]) for before, after in pairs for key in IMAGE_KEYS]
    actions = [_actions(policy, observation, seed) for seed, observation in enumerate(decoded)]
    worst = max(squares)
    return {
        "images": name,
        "kib_per_image": size / images / 1024,
        "encode_ms": encode_ms,
        "decode_ms": decode_ms,
        "psnr_db": 10 * np.log10(255**2 / np.mean(squares)) if worst else None,
        **_errors(raw, actions, deviation),
    }


def _timed(
    work: Callable[[dict[str, Any]], dict[str, Any]], observations: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], float]:
    """The results, and the median time for one image in milliseconds."""
    results, times = [], []
    for observation in observations:
        began = time.perf_counter()
        results.append(work(observation))
        times.append(time.perf_counter() - began)
    return results, 1e3 * float(np.median(times)) / len(IMAGE_KEYS)


def _decode(observation: dict[str, Any]) -> dict[str, Any]:
    images = {
        key: np.asarray(Image.open(io.BytesIO(observation[key]["data"])).convert("RGB")) for key in IMAGE_KEYS
    }
    return _with_images(observation, images)


def _squared_error(before: Any, after: Any) -> float:
    return float(np.mean((before.astype(np.float64) - after) ** 2))


def _errors(expected: list[Any], actual: list[Any], deviation: Any) -> dict[str, float]:
    """Differences of actions in units of the action's own standard deviation over all raw chunks."""
    error = (np.concatenate(actual) - np.concatenate(expected)) / deviation
    return {
        "action_rms": float(np.sqrt(np.mean(error**2))),
        "action_p99": float(np.percentile(np.abs(error), 99)),
        "action_max": float(np.abs(error).max()),
    }


def _table(rows: list[dict[str, Any]]) -> str:
    columns = ("kib_per_image", "encode_ms", "decode_ms", "psnr_db", "action_rms", "action_p99", "action_max")
    lines = ["images".ljust(18) + "".join(column.rjust(15) for column in columns)]
    for row in rows:
        cells = [f"{row[column]:.3g}" if row.get(column) is not None else "" for column in columns]
        lines.append(row["images"].ljust(18) + "".join(cell.rjust(15) for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
