"""Films of episodes: MP4 where OpenCV is there, GIF where the name says so."""

from __future__ import annotations

import pathlib
from typing import Sequence

from vlad_libero.errors import LiberoError
from vlad_libero.simulator.cameras import Image


def write_film(path: pathlib.Path, frames: Sequence[Image], fps: float = 10.0) -> None:
    """Write frames, all uint8 [height, width, 3] of one size, as `.gif` or `.mp4`.

    Raises:
        LiberoError: for no frames, another suffix, or a film that cannot be written.
    """
    if not frames:
        raise LiberoError(f"there is no frame for {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        _write_gif(path, frames, fps)
    elif path.suffix == ".mp4":
        _write_mp4(path, frames, fps)
    else:
        raise LiberoError(f"films end in .gif or .mp4, not '{path.suffix}'")


def _write_gif(path: pathlib.Path, frames: Sequence[Image], fps: float) -> None:
    from PIL import Image as Pillow

    # One palette for the whole film: frames of their own would flicker.
    first = Pillow.fromarray(frames[len(frames) // 2]).quantize(128)
    pictures = [Pillow.fromarray(frame).quantize(palette=first) for frame in frames]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, optimize=True
    )


def _write_mp4(path: pathlib.Path, frames: Sequence[Image], fps: float) -> None:
    import cv2

    height, width, _ = frames[0].shape
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise LiberoError(f"OpenCV cannot write {path}; choose .gif")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
