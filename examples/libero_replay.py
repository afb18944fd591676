"""Replays 28 recorded LIBERO observations to a policy server and shows what comes back.

    python examples/libero_replay.py --host 127.0.0.1 --port 8000 --out out/libero_replay

The observations come from the simulator: agent view and wrist camera, robot state and instruction
of four LIBERO-Spatial tasks. Every chunk is checked; latencies are printed and written, and the
first chunk is drawn. Exit code 0 if all went well, 1 with one line that says why if not.
"""

from __future__ import annotations

import argparse
import logging
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
from chunk_plot import draw_chunk

from vlad_client import PolicyClientError, PolicyServerError, WebsocketClientPolicy
from vlad_client.latency_table import LatencyTable
from vlad_client.progress import progress

OBSERVATIONS = pathlib.Path(__file__).parent / "data" / "libero_observations.npz"
ACTION_WIDTH = 7


class ReplayError(Exception):
    """Something that the server said or sent is not what a LIBERO robot can use."""


def main() -> int:
    """Run the example; returns its exit code."""
    args = _parse()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with WebsocketClientPolicy(args.host, args.port, os.environ.get("VLAD_API_KEY")) as policy:
            metadata = policy.get_server_metadata()
            table, chunks = _replay(policy, _expected_shape(metadata))
        print(table.render())
        print(_summary(args.host, args.port, metadata))
        table.save(args.out / "latency.json")
        _plot(chunks[0], metadata, args.out / "first_chunk.png")
    except (PolicyClientError, ReplayError, OSError) as error:
        print(f"libero_replay: {_in_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replay recorded LIBERO observations to a policy server.")
    parser.add_argument("--host", default="127.0.0.1", help="name or address of the server")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/libero_replay"))
    return parser.parse_args()


def load_observations() -> list[dict[str, Any]]:
    """The recorded observations as requests, in the order of recording."""
    with np.load(OBSERVATIONS) as recorded:
        images, wrist_images = recorded["image"], recorded["wrist_image"]
        states, prompts = recorded["state"], recorded["prompt"]
    return [
        {
            "observation/image": images[n],
            "observation/wrist_image": wrist_images[n],
            "observation/state": states[n],
            "prompt": str(prompts[n]),
        }
        for n in range(len(images))
    ]


def _expected_shape(metadata: dict[str, Any]) -> tuple[int | None, int]:
    """Horizon and width of the chunks; servers that announce no horizon may choose theirs."""
    environment = metadata.get("environment", "LIBERO")
    width = metadata.get("action_dim", ACTION_WIDTH)
    if environment != "LIBERO" or width != ACTION_WIDTH:
        raise ReplayError(
            f"the server serves {environment} with {width} action columns, "
            f"these observations are LIBERO's, with {ACTION_WIDTH}; start it with --env LIBERO"
        )
    return metadata.get("action_horizon"), width


def _replay(
    policy: WebsocketClientPolicy, shape: tuple[int | None, int]
) -> tuple[LatencyTable, list[np.ndarray[Any, Any]]]:
    table, chunks = LatencyTable(), []
    for observation in progress(load_observations(), "replaying LIBERO observations"):
        started = time.perf_counter()
        reply = policy.infer(observation)
        table.add(1e3 * (time.perf_counter() - started), reply)
        chunks.append(_checked(reply, shape, place=f"reply {len(chunks) + 1}"))
    return table, chunks


def _checked(reply: dict[str, Any], shape: tuple[int | None, int], place: str) -> np.ndarray[Any, Any]:
    actions = reply.get("actions")
    if not isinstance(actions, np.ndarray) or actions.ndim != 2:
        raise ReplayError(f"{place} holds no action chunk, only {', '.join(reply) or 'nothing'}")
    horizon, width = shape
    if actions.shape != (horizon or len(actions), width) or not len(actions):
        raise ReplayError(
            f"{place} has a chunk of shape {actions.shape}, expected ({horizon or '*'}, {width})"
        )
    if not np.isfinite(actions).all():
        raise ReplayError(f"{place} has actions that are not finite")
    return actions


def _summary(host: str, port: int, metadata: dict[str, Any]) -> str:
    known = [
        str(metadata[key]) for key in ("environment", "backend", "precision", "device") if metadata.get(key)
    ]
    return (
        f"server: {host}:{port}, {', '.join(known) or 'says nothing about itself'}\n"
        f"policy: {describe_policy(metadata)}"
    )


def describe_policy(metadata: dict[str, Any]) -> str:
    """Name, family and origin of the weights, as far as the server tells."""
    name = metadata.get("checkpoint") or metadata.get("config") or "unnamed"
    weights = {
        "random": "random weights: the actions mean nothing",
        None: "the server does not say where its weights come from",
    }.get(metadata.get("weights"), "trained weights")
    return f"{name} ({metadata.get('family', 'family unknown')}), {weights}"


def _plot(chunk: np.ndarray[Any, Any], metadata: dict[str, Any], path: pathlib.Path) -> None:
    try:
        draw_chunk(chunk, load_observations()[0], _plot_title(metadata), path)
    except ImportError:
        print("plot:   none, it needs matplotlib: pip install 'vlad-client[plot]'")
    else:
        print(f"plot:   {path}")


def _plot_title(metadata: dict[str, Any]) -> str:
    name = metadata.get("checkpoint") or metadata.get("config") or "policy"
    facts = [
        metadata.get("family"),
        "random weights" if metadata.get("weights") == "random" else None,
        metadata.get("backend"),
        metadata.get("precision"),
        f"{metadata['num_denoising_steps']} denoising steps" if metadata.get("num_denoising_steps") else None,
    ]
    return " · ".join([f"First action chunk of {name}", *(str(fact) for fact in facts if fact)])


def _in_one_line(error: Exception) -> str:
    """The telling line of an error: the first, or the last where the server sent a traceback."""
    text = error.server_message if isinstance(error, PolicyServerError) else str(error)
    lines = text.strip().splitlines() or [type(error).__name__]
    line = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    return f"the server answered: {line}" if isinstance(error, PolicyServerError) else line


if __name__ == "__main__":
    sys.exit(main())
