"""Finds hf-libero and its assets, and imports it without its questions on the terminal."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import io
import os
import pathlib
import tempfile
from types import ModuleType
from typing import Literal

from vlad_libero.assets import procedural_assets
from vlad_libero.errors import SimulatorMissingError

AssetChoice = Literal["auto", "procedural", "official"]

INSTALL_HINT = (
    "install it with: pip install 'vlad[libero]' && "
    "pip install --no-deps hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1"
)
CACHE_VARIABLE = "VLAD_CACHE_DIR"

_SCENE = "scenes/libero_tabletop_base_style.xml"


@dataclasses.dataclass(frozen=True)
class AssetTree:
    """Which pictures and shapes the simulator loads.

    Attributes:
        kind: `procedural` for ours, `official` for LIBERO's.
        directory: root of the tree.
    """

    kind: Literal["procedural", "official"]
    directory: pathlib.Path


def is_installed() -> bool:
    """True where every package of the simulator can be found; imports none of them."""
    return all(
        importlib.util.find_spec(name) is not None for name in ("libero", "robosuite", "bddl", "mujoco")
    )


def libero_directory() -> pathlib.Path:
    """The folder of hf-libero with its task files and initial states; nothing is imported.

    Raises:
        SimulatorMissingError: where it is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for location in [] if spec is None else spec.submodule_search_locations or []:
        if (directory := pathlib.Path(location) / "libero").is_dir():
            return directory
    raise SimulatorMissingError(f"hf-libero is not installed; {INSTALL_HINT}")


def cache_directory() -> pathlib.Path:
    """Where what is generated is kept: `VLAD_CACHE_DIR`, or the user's cache."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return pathlib.Path(chosen)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlad"


def official_assets() -> pathlib.Path | None:
    """LIBERO's own assets where the user has them: beside hf-libero, or where its downloader puts them."""
    places = (libero_directory() / "assets", pathlib.Path("~/.cache/libero/assets").expanduser())
    return next((place for place in places if (place / _SCENE).is_file()), None)


def choose_assets(choice: AssetChoice) -> AssetTree:
    """The asset tree for a choice; `auto` takes the official one where it is there.

    Raises:
        SimulatorMissingError: for `official` where there is none.
    """
    official = None if choice == "procedural" else official_assets()
    if official is not None:
        return AssetTree("official", official)
    if choice == "official":
        raise SimulatorMissingError(
            "the official LIBERO assets are not on this machine; put them into ~/.cache/libero/assets, "
            "or use --assets procedural"
        )
    return AssetTree("procedural", procedural_assets(cache_directory()))


def import_libero(assets: AssetTree) -> ModuleType:
    """Import `libero.libero.envs.env_wrapper`, ready to load scenes from `assets`.

    hf-libero asks questions on the terminal where its configuration file is missing, and downloads
    assets where it finds none: both are answered beforehand.

    Raises:
        SimulatorMissingError: where a package, or what draws pictures, is missing.
    """
    directory = libero_directory()
    os.environ.setdefault("MUJOCO_GL", "egl")
    _require_egl()
    # Softpipe threads of several simulators fight for the same cores.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    _provide_configuration(directory)
    try:
        # robosuite greets with warnings about an optional file, once per process.
        with contextlib.redirect_stderr(io.StringIO()):
            import robosuite.macros

            robosuite.macros.FILE_LOGGING_LEVEL = None
            import libero.libero
            import libero.libero.envs.env_wrapper
    except ImportError as error:
        raise SimulatorMissingError(f"the simulator cannot be imported ({error}); {INSTALL_HINT}") from error
    # Its own look-up returns this first. One process uses one tree.
    libero.libero._assets_path_cache = str(assets.directory)
    module: ModuleType = libero.libero.envs.env_wrapper
    return module


def _require_egl() -> None:
    """MuJoCo's own words for a missing library are about an attribute of None."""
    if os.environ["MUJOCO_GL"] != "egl":
        return
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError as error:
        raise SimulatorMissingError(
            f"pictures cannot be drawn: {error}; on Debian and Ubuntu: apt install libegl1 libegl-mesa0 "
            "libgl1-mesa-dri; or MUJOCO_GL=osmesa, where that is installed"
        ) from error


def _provide_configuration(directory: pathlib.Path) -> None:
    """Name a configuration file where the user has none, so that the import asks nothing."""
    configured = pathlib.Path(os.environ.get("LIBERO_CONFIG_PATH") or "~/.libero").expanduser()
    if (configured / "config.yaml").is_file():
        return
    folder = cache_directory() / "libero-config"
    folder.mkdir(parents=True, exist_ok=True)
    places = {
        "assets": directory / "assets",
        "bddl_files": directory / "bddl_files",
        "benchmark_root": directory,
        "datasets": directory.parent / "datasets",
        "init_states": directory / "init_files",
    }
    text = "".join(f"{name}: '{place}'\n" for name, place in places.items())
    if not (folder / "config.yaml").is_file() or (folder / "config.yaml").read_text("utf-8") != text:
        # Several processes start at once: none may read half a file.
        with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as stream:
            stream.write(text)
        os.replace(stream.name, folder / "config.yaml")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
