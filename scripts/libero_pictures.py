"""Draws the pictures of docs/libero.md: the ten scenes, the expert at work, randomised looks.

libero_pictures.py DIRECTORY
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
from PIL import Image, ImageDraw

from vlad_libero.demos.demonstration import DemoSettings
from vlad_libero.evaluation.plot import distinct_parts
from vlad_libero.expert import Expert, Phase
from vlad_libero.simulator.appearance import Appearance
from vlad_libero.simulator.cameras import AGENT_CAMERA, LIGHT, WRIST_CAMERA
from vlad_libero.simulator.package import choose_assets
from vlad_libero.simulator.simulator import Simulator, episode_seed
from vlad_libero.simulator.suites import suite_tasks

Tile = tuple[str, "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"]

_CAPTION_PX = 16
_IN_DRAWER = 4


def main() -> int:
    """Draw all of them; 0 where that worked."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    assets = choose_assets("procedural")
    tasks = suite_tasks("libero_spatial")
    scenes: list[Tile] = []
    for task, label in zip(tasks, distinct_parts([task.prompt for task in tasks]), strict=True):
        simulator = Simulator(task, assets, LIGHT)
        simulator.restore(task.initial_states()[0], episode_seed("eval", 7, task.index, 0))
        simulator.wait(10)
        scenes.append((f"{task.index} {label}", simulator.view(AGENT_CAMERA)))
        if task.index == _IN_DRAWER:
            _save(out / "libero-expert.jpg", _expert(simulator), columns=4)
            _save(out / "libero-looks.jpg", _looks(simulator, DemoSettings(assets)), columns=4)
        simulator.close()
    _save(out / "libero-scenes.jpg", scenes, columns=5)
    return 0


def _expert(simulator: Simulator) -> list[Tile]:
    expert, tiles = Expert(simulator), []
    seen: set[Phase] = set()
    for _ in range(220):
        action = expert.act()
        if expert.phase not in seen:
            seen.add(expert.phase)
            tiles.append((expert.phase.value, simulator.view(AGENT_CAMERA)))
        if simulator.step(action):
            tiles.append(("done", simulator.view(AGENT_CAMERA)))
            break
    return tiles[:8]


def _looks(simulator: Simulator, settings: DemoSettings) -> list[Tile]:
    appearance, tiles = Appearance(simulator, settings.appearance), []
    for seed in range(4):
        simulator.place(seed)
        appearance.draw(np.random.default_rng(seed))
        simulator.wait(10)
        tiles.append((f"seed {seed}", simulator.view(AGENT_CAMERA)))
        tiles.append(("wrist", simulator.view(WRIST_CAMERA)))
    return tiles


def _save(path: pathlib.Path, tiles: list[Tile], columns: int) -> None:
    height, width, _ = tiles[0][1].shape
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + _CAPTION_PX)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (caption, picture) in enumerate(tiles):
        x, y = place % columns * width, place // columns * (height + _CAPTION_PX)
        draw.text((x + 3, y + 2), caption, "black")
        sheet.paste(Image.fromarray(picture), (x, y + _CAPTION_PX))
    sheet.save(path, quality=88)
    print(f"libero_pictures: {path} ({path.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    sys.exit(main())
