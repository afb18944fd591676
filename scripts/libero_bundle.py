"""Packs the simulator for a machine without a package index: one archive for `PYTHONPATH`.

    libero_bundle.py OUT.tar.xz

robosuite's wheel holds every robot there is; what LIBERO-Spatial loads is a hundredth of it. Takes the
packages from the environment that runs this script (see docs/libero.md) and leaves out the rest:
pure Python and data only, so any Python from 3.10 on can use the archive. Wheels with compiled code,
mujoco above all, have to be brought beside it for the other machine's Python.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
import re
import sys
import tarfile
from xml.etree import ElementTree

# Distributions of pure Python, by the package that they bring.
WHOLE = {
    "bddl": "bddl",
    "easydict": "easydict",
    "farama_notifications": "farama-notifications",
    "future": "future",
    "gymnasium": "gymnasium",
    "OpenGL": "pyopengl",
    "termcolor": "termcolor",
}
# What comes along of the two large packages beside Python files.
LIBERO_DATA = re.compile(
    r"libero/libero/(bddl_files|init_files)/libero_spatial/.*\.(bddl|pruned_init)|libero/.*\.json"
)
ROBOSUITE_DATA = re.compile(r"robosuite/(controllers/config/.*\.json|models/assets/(base\.xml|arenas/.*))")
# The models that LIBERO's Panda is made of; they name their meshes and textures.
ROBOSUITE_MODELS = (
    "models/assets/robots/panda/robot.xml",
    "models/assets/grippers/panda_gripper.xml",
    "models/assets/mounts/rethink_mount.xml",
)
_NEVER = re.compile(r"__pycache__|\.pyc$|/tests?/")


def main() -> int:
    """Write the archive; 0 where it holds everything."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    out = pathlib.Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w:xz") as archive:
        for package in WHOLE:
            _add(archive, package, re.compile(".*"))
        _add(archive, "libero", re.compile(LIBERO_DATA.pattern + r"|.*\.py$"))
        _add(archive, "robosuite", re.compile(ROBOSUITE_DATA.pattern + r"|.*\.py$"))
        _add_models(archive)
    print(f"libero_bundle: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    for package, distribution in {**WHOLE, "libero": "hf-libero", "robosuite": "robosuite"}.items():
        print(f"  {package} of {distribution} {importlib.metadata.version(distribution)}")
    return 0


def _add(archive: tarfile.TarFile, package: str, wanted: re.Pattern[str]) -> None:
    root = _root(package)
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root.parent).as_posix()
        if path.is_file() and wanted.fullmatch(name) and not _NEVER.search(name):
            archive.add(path, name)


def _add_models(archive: tarfile.TarFile) -> None:
    root = _root("robosuite")
    files = set()
    for name in ROBOSUITE_MODELS:
        model = root / name
        elements = ElementTree.parse(model).iter()
        named = {file for element in elements if (file := element.get("file"))}
        files |= {model, *((model.parent / file).resolve() for file in named)}
    for path in sorted(files):
        archive.add(path, path.relative_to(root.parent).as_posix())


def _root(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"libero_bundle: {package} is not installed; see docs/libero.md")
    return pathlib.Path(next(iter(spec.submodule_search_locations))).resolve()


if __name__ == "__main__":
    sys.exit(main())
