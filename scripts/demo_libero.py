"""The closed loop: a daemon, a simulated robot arm that obeys instructions, a film of it.

Run by `make demo`: three tasks of LIBERO-Spatial, one episode each, against `serve_policy --checkpoint
CHECKPOINT`. Leaves the log, the results and `demo.gif` in `out/demo`; ends the daemon whatever happens.
Needs the simulator, see docs/libero.md, and a checkpoint that was trained for it.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts import demo  # noqa: E402

OUT = ROOT / "out" / "demo"
EVALUATION = OUT / "evaluation"

# Between plate and ramekin, on the ramekin, on the stove: only the instruction tells these scenes apart, and
# the embedded policy masters them.
TASKS = (0, 5, 7)
GIF_FPS = 10.0
_BANNER_PX = 28


def main() -> int:
    """Run the demo; 0 where every episode ran and at least one succeeded."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    log = OUT / "daemon.log"
    started = time.monotonic()
    try:
        _require_simulator()
        with demo.daemon(log, ["--checkpoint", options.checkpoint, "--env", "LIBERO"]) as process:
            port, metrics_port = demo.ports(process, log)
            demo.wait_ready(process, metrics_port)
            _evaluate(port, options)
            demo.stop(process)
        summary: dict[str, Any] = json.loads((EVALUATION / "summary.json").read_text("utf-8"))
        gif = _film(summary)
    except demo.DemoError as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return 1
    for row in summary["per_task"]:
        print(f"demo: {'success' if row['successes'] else 'FAILURE'}: {row['prompt']}")
    if summary["served"]["weights"] == "random":
        print("demo: this checkpoint was never trained; its arm only twitches")
    print(
        f"demo: {summary['successes']} of {summary['episodes']} tasks in {time.monotonic() - started:.0f} s, "
        f"see {gif.relative_to(ROOT)}"
    )
    return 0 if summary["successes"] else 1


def _require_simulator() -> None:
    from vlad_libero.errors import SimulatorMissingError
    from vlad_libero.simulator.package import INSTALL_HINT, is_installed, libero_directory

    try:
        libero_directory()
    except SimulatorMissingError as error:
        raise demo.DemoError(str(error)) from error
    if not is_installed():
        raise demo.DemoError(f"a part of the simulator is missing; {INSTALL_HINT}")


def _evaluate(port: int, options: argparse.Namespace) -> None:
    arguments = {
        "--port": port,
        "--tasks": ",".join(map(str, TASKS)),
        "--trials": 1,
        "--videos": 1,
        "--video-format": "gif",
        "--assets": "procedural",
        "--replan-steps": options.replan_steps,
        "--max-steps": options.max_steps,
        "--workers": options.workers,
        "--out": EVALUATION,
    }
    command = [sys.executable, "-m", "vlad_libero.evaluation.cli"]
    command += [str(part) for pair in arguments.items() for part in pair]
    if code := subprocess.run(command, check=False).returncode:
        raise demo.DemoError(f"the evaluation ended with exit code {code}")


def _film(summary: dict[str, Any]) -> pathlib.Path:
    """Join the films of the episodes, each under its instruction."""
    from PIL import Image, ImageDraw, ImageSequence

    frames = []
    for row in summary["per_task"]:
        (path,) = (EVALUATION / "videos").glob(f"task{row['task']:02d}-trial000-*.gif")
        with Image.open(path) as film:
            for frame in ImageSequence.Iterator(film):
                picture = frame.convert("RGB").resize((2 * frame.width, 2 * frame.height))
                canvas = Image.new("RGB", (picture.width, picture.height + _BANNER_PX), "white")
                canvas.paste(picture, (0, _BANNER_PX))
                ImageDraw.Draw(canvas).text((6, 8), row["prompt"], "black")
                frames.append(canvas.quantize(128))
    path = OUT / "demo.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / GIF_FPS), loop=0)
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="demo", help="directory, or the embedded demo")
    parser.add_argument("--replan-steps", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=0, help="(the suite's)")
    parser.add_argument(
        "--workers", type=int, default=1, help="simulators at a time; the daemon needs a core too"
    )
    return parser


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
