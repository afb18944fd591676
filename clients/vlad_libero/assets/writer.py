"""Puts the asset tree on disk, once per version of it."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import tempfile

from vlad_libero.assets import cookies, furniture, scene, tableware, textures
from vlad_libero.errors import LiberoError

_MANIFEST = "manifest.json"


def procedural_assets(cache: pathlib.Path) -> pathlib.Path:
    """The directory with the asset tree, written where it is missing or incomplete.

    Safe against several processes at once: each writes its own copy, and the first to finish wins.

    Raises:
        LiberoError: where the cache cannot be written.
    """
    files = asset_files()
    directory = cache / f"libero-assets-{_fingerprint(files)}"
    if not _is_complete(directory, files):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            workshop = pathlib.Path(tempfile.mkdtemp(prefix="libero-assets-", dir=cache))
            _write(workshop, files)
            try:
                workshop.rename(directory)
            except OSError:
                if not _is_complete(directory, files):
                    shutil.rmtree(directory)
                    workshop.rename(directory)
                else:
                    shutil.rmtree(workshop)
        except OSError as error:
            raise LiberoError(f"the assets cannot be written to {cache}: {error}") from error
    return directory


def write_assets(directory: pathlib.Path) -> list[pathlib.Path]:
    """Write the whole tree into `directory`; returns the files.

    Raises:
        LiberoError: where that is not possible.
    """
    files = asset_files()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, files)
    except OSError as error:
        raise LiberoError(f"the assets cannot be written to {directory}: {error}") from error
    return [directory / name for name in files]


def asset_files() -> dict[str, bytes]:
    """Every file that LIBERO-Spatial loads, by its path in the tree."""
    trees = {
        "articulated_objects": {**furniture.wooden_cabinet(), **furniture.flat_stove()},
        "stable_hope_objects/cookies": cookies.cookie_box(),
        "scenes": {"libero_tabletop_base_style.xml": scene.tabletop_scene()},
    }
    for vessel in (tableware.BOWL, tableware.PLATE, tableware.RAMEKIN):
        trees[f"stable_scanned_objects/{vessel.name}"] = vessel.files()
    files = {
        f"{folder}/{name}": text.encode() for folder, texts in trees.items() for name, text in texts.items()
    }
    pictures = {
        f"scenes/textures/{scene.FLOOR_TEXTURE}": textures.floor_tiles(),
        f"scenes/textures/{scene.WALL_TEXTURE}": textures.plaster(),
        f"scenes/textures/{scene.TABLE_TEXTURE}": textures.wood(3, (0.80, 0.66, 0.50)),
        "articulated_objects/textures/cabinet_grain.png": textures.wood(4, (0.62, 0.42, 0.27)),
    }
    return {**files, **{name: textures.png(image) for name, image in pictures.items()}}


def _write(directory: pathlib.Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    # The downloader of hf-libero takes a folder as complete once these exist.
    (directory / "turbosquid_objects").mkdir(exist_ok=True)
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    os.chmod(directory, 0o755)


def _is_complete(directory: pathlib.Path, files: dict[str, bytes]) -> bool:
    try:
        return all((directory / name).read_bytes() == content for name, content in files.items())
    except OSError:
        return False


def _fingerprint(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()[:12]
